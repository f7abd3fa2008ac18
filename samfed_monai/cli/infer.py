"""``samfed infer`` and ``samfed app``: segment images into files, or in a browser on this machine."""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from samfed_monai.cli.arguments import (
    absolute,
    add_bundle,
    add_command,
    add_model,
    add_other_size,
    add_site,
    take_overrides,
)
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.model_file import any_image_size
from samfed_monai.core.text import counted, printable

logger = logging.getLogger(__name__)

FORMS = {
    "overlays": ("DIR", "images with the masks' outlines; for a video, a video in which doubtful frames have a border"),
    "geojson": ("DIR", "the masks' polygons (for QuPath)"),
    "coco": ("FILE.json", "COCO annotations as run lengths (extra coco)"),
    "dicom_seg": ("DIR", "DICOM segmentations: one for each series of slices, one for each other object (extra dicom)"),
    "areas": ("FILE.csv", "a table of pixels, share, pieces, mm² and expected Dice (how far a mask can be trusted)"),
    "page": ("FILE.html", "an HTML page with outlines and areas, most doubtful masks first"),
}
"""Options for other forms than masks: metavar and help."""


def add_infer_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed infer BUNDLE [IMAGES …] --output-dir DIR [--model W] [--overlays DIR] …``."""
    parser = add_command(subparsers, "infer", run=run, kept="masks that were written are complete")
    add_bundle(parser)
    about = "images, NIfTI volumes, DICOM objects, patterns ('new/*.jpg') and folders with their sub-folders; videos "
    about += "only if named (MP4, AVI, MKV; extra video)"
    parser.add_argument("sources", metavar="IMAGES", nargs="*", help=about)
    about = "folder for the masks, outside of the image folders"
    parser.add_argument("--output-dir", metavar="DIR", required=True, help=about)
    _add_model(parser)
    about = "runtime of an ONNX file: onnxruntime, or openvino, which is faster on most processors (extra openvino)"
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help=f"{about} (default: onnxruntime)")
    about = "leave out files that cannot be read, with a warning for each; by default such a file stops the command"
    parser.add_argument("--skip-unreadable", action="store_true", help=about)
    parser.add_argument("--probabilities", action="store_true", help="also write 8-bit probability maps")
    about = "for videos: segment every n-th frame (default: two frames a second)"
    parser.add_argument("--every", metavar="N", type=int, help=about)
    for form, (metavar, about) in FORMS.items():
        parser.add_argument(f"--{form.replace('_', '-')}", metavar=metavar, help=f"also write {about}")
    about = "expected Dice below which a mask is called doubtful, in tables, pages and the last line (default: 0.7)"
    parser.add_argument("--flag-below", metavar="DICE", type=dice, default=0.7, help=f"{about}; 70%% also works")
    about = "write doubtful PNG masks into the subfolder doubtful of --output-dir"
    parser.add_argument("--only-sure", action="store_true", help=about)
    add_other_size(parser)
    take_overrides(parser, "inference.json", "inference.json", unread=["dataset_dir"])


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a model."""
    add_model(parser, ", or an exported ONNX file")
    add_site(parser)
    about = "reorient NIfTI volumes to RAS+ before they are cut into slices; masks keep the axes of their volume"
    parser.add_argument("--reorient", action="store_true", help=about)


def run(arguments: argparse.Namespace) -> None:
    """Segments all sources with :class:`samfed_monai.inference.Predictor`; prints the number of doubtful masks and the
    most doubtful ones."""
    overrides = overrides_of(arguments.extra)
    if (folder := overrides.get("dataset_dir")) is not None:
        expected, hint = "images as arguments, without an option", f"type samfed infer BUNDLE {folder} …"
        raise refused("--dataset_dir", found=repr(folder), expected=expected, hint=hint)
    sources, output = images_of(arguments.sources), str(absolute(arguments.output_dir))
    from samfed_monai.inference import Kind, MaskForms, Predictor, segment

    chosen = {name: getattr(arguments, name) for name in ("site", "views", "runtime")}
    chosen |= {"doubtful_below": arguments.flag_below, "overrides": overrides}
    predictor = Predictor(arguments.bundle, arguments.model, **chosen)
    if predictor.model.kind is Kind.ONNX and arguments.device not in (None, "cpu"):
        expected, hint = f"cpu, the only device for the ONNX file {predictor.model.path.name}", "leave it out"
        raise refused("--device", found=arguments.device, expected=expected, hint=hint)
    paths = {form: absolute(getattr(arguments, form)) for form in FORMS}
    forms = MaskForms(predictor.model.bundle, predictor.classes, **paths)
    names = ("probabilities", "reorient", "skip_unreadable", "every", "only_sure")
    try:
        with any_image_size(arguments.allow_other_size):
            segment(predictor, sources, output, forms, **{name: getattr(arguments, name) for name in names})
    finally:  # also if a file is refused after all others are written
        doubtful = sorted((each.expected_dice, name) for name, each in forms.assessed.items() if each.doubtful)
        note = "" if all(each.lower_bound is not None for each in forms.assessed.values()) else ", not calibrated"
        first = f"; look first at {', '.join(printable(name) for _, name in doubtful[:3])}" if doubtful else ""
        count = f"{len(doubtful)} of {counted(len(forms.assessed), 'mask')}"
        if forms.assessed:
            sys.stdout.write(f"doubtful: {count} (expected Dice below {predictor.doubtful_below:g}{note}){first}\n")


def dice(word: str) -> float:
    """Parses a Dice, which may be given as a percentage (``70%``)."""
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        expected = f"expected a Dice from 0 to 1, or a percentage such as 70%, found {word!r}"
        raise argparse.ArgumentTypeError(expected) from None


def images_of(words: Sequence[str]) -> str | list[str]:
    """Returns the images of the command line: one folder, or a list of folders and images, absolute and without
    duplicates. An image named by a link keeps the link's name.

    Patterns that the shell did not expand are expanded here, unless a file has that name. Files and folders of systems
    (:func:`~samfed_monai.data.image_folder.is_system`) are left out with a warning.

    Raises:
        Refused: no images are named, or a pattern matches nothing.
    """
    from samfed_monai.data.image_folder import is_system

    problems, paths, systems = Problems(), list[str](), list[str]()
    for word in words:
        path = Path(word).expanduser()
        pattern = glob.has_magic(word) and not path.exists()
        matches = sorted(glob.glob(str(path), recursive=True)) if pattern else [str(path)]
        if not matches:
            problems.add(word, found="no file that matches the pattern", expected="images, or folders of images")
        start = next((n for n, part in enumerate(path.parts) if pattern and glob.has_magic(part)), len(path.parts) - 1)
        for found in matches:
            place = Path(found)
            place = place.resolve() if place.is_dir() else place.parent.resolve() / place.name
            (systems if any(map(is_system, Path(found).parts[max(start, 0) :])) else paths).append(str(place))
    if not words:
        hint = "type samfed infer BUNDLE IMAGES …"
        problems.add("IMAGES", found="none", expected="images, patterns or folders", hint=hint)
    elif systems and not paths:
        problems.add(systems[0], found="a system file or folder", expected="images, or folders of images")
    elif systems:
        logger.warning("not read: %s (%s)", counted(len(systems), "system file"), systems[0])
    problems.refuse_if_any()
    paths = list(dict.fromkeys(paths))
    return paths[0] if len(paths) == 1 and Path(paths[0]).is_dir() else paths


def add_app_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed app [BUNDLE] [--model MODEL] [--port N] …``."""
    parser = add_command(subparsers, "app", run=run_app, kept="masks that were downloaded are complete")
    about = "a bundle's folder, or the name of a packaged bundle (default: samfed_skin)"
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", default="samfed_skin", help=about)
    _add_model(parser)
    parser.add_argument("--port", metavar="N", type=int, default=7860, help="port; 0 takes a free port (default: 7860)")


def run_app(arguments: argparse.Namespace) -> None:
    """Runs the server until it is interrupted."""
    from samfed_monai.inference import Predictor
    from samfed_monai.inference.app import App

    predictor = Predictor(arguments.bundle, arguments.model, site=arguments.site, views=arguments.views)
    App(predictor, port=arguments.port, reorient=arguments.reorient).run()
