"""``samfed infer``: masks for images without labels."""

from __future__ import annotations

import argparse
import glob
import tempfile
from collections.abc import Sequence
from pathlib import Path

from samfed_monai.cli import trained_model
from samfed_monai.cli.arguments import absolute, add_bundle, add_device, take_overrides
from samfed_monai.cli.trained_model import MODEL_HELP, run_or_file, shipped_model, trained_as, weights_file
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused


def add_infer_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed infer BUNDLE [IMAGES …] --output-dir DIR [--model W] [--overlays DIR] …``."""
    parser = subparsers.add_parser(
        "infer",
        help="segment images",
        description="Writes one PNG mask (0 and 255, or the values of several classes) per image, at the image's own "
        "size and under its own name; one NIfTI of a NIfTI volume, with its affine; a PNG of every frame of a DICOM "
        "object. Nothing of the image's metadata is copied, but into a DICOM segmentation, and no file is replaced.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument(
        "sources",
        metavar="IMAGES",
        nargs="*",
        help="images, NIfTI volumes, DICOM objects, patterns ('new/*.jpg') and folders with their sub-folders",
    )
    parser.add_argument("--images", metavar="DIR", action="append", default=[], help="the same, as an option")
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        "--output",
        dest="output",
        metavar="DIR",
        required=True,
        help="folder for the masks, outside of the images'",
    )
    about = f"{MODEL_HELP}, or an exported ONNX file (default: the bundle's own, where it has one)"
    parser.add_argument("--model", metavar="MODEL", help=about)
    parser.add_argument("--site", metavar="NAME", default="", help="of a run: this site's own model")
    about = "what runs an ONNX file: onnxruntime, or openvino, the faster one on most processors (extra openvino)"
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), help=f"{about} (default: onnxruntime)")
    parser.add_argument("--probabilities", action="store_true", help="also write 8-bit probability maps")
    parser.add_argument("--overlays", metavar="DIR", help="also write pictures with the masks' outlines there")
    parser.add_argument("--geojson", metavar="DIR", help="also write the masks' polygons there (for QuPath)")
    about = "also write COCO annotations of all pictures: polygons, run lengths where there are holes (the extra coco)"
    parser.add_argument("--coco", metavar="FILE.json", help=about)
    about = "also write DICOM segmentations there, one of a series' slices, one of any other object (the extra dicom)"
    parser.add_argument("--dicom-seg", metavar="DIR", help=about)
    parser.add_argument("--areas", metavar="FILE.csv", help="also write a table of areas: pixels, share, pieces, mm²")
    trained_model.add_views(parser)
    add_device(parser)
    take_overrides(parser, "inference.json", "inference.json")
    parser.set_defaults(run=run, kept="masks that were written are complete")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Runs the bundle's ``inference.json`` with the settings that the weights were trained with, where they say."""
    from samfed_monai.cli.mask_files import segment_all
    from samfed_monai.cli.run_bundle import run_workflow

    if (folder := overrides_of(arguments.extra).get("dataset_dir")) is not None:
        expected, hint = "images without an option", f"samfed infer BUNDLE {folder} …"
        raise Refused([Problem("--dataset_dir", found=repr(folder), expected=expected, hint=hint)])
    sources = images_of([*arguments.sources, *arguments.images])
    arguments.model = arguments.model or str(shipped_model(arguments.bundle))
    arguments.output = absolute(arguments.output)
    adapter = trained_model.is_adapter(arguments)
    models = run_or_file(arguments.model)
    exported = trained_model.is_onnx(models)
    if arguments.runtime and not exported:
        hint = "leave it out, or export the network with `samfed export --to onnx` and name that file"
        raise Refused([Problem("--runtime", found=str(arguments.model), expected="an ONNX file to run", hint=hint)])
    if arguments.site and isinstance(models, Path):
        hint = "leave it out, or name the folder of the run"
        raise Refused([Problem("--site", found="a weights file, which is one model", expected="a run", hint=hint)])

    arguments.classes = trained_model.classes_of(arguments, models)

    with tempfile.TemporaryDirectory(prefix="samfed-") as scratch:

        def segment(images: str | list[str], output: str) -> None:
            given = argparse.Namespace(**{**vars(arguments), "images": images, "output": output})
            if adapter:
                trained_model.infer(given)
                return
            if exported:
                trained_model.infer_onnx(given)
                return
            model = weights_file(models, arguments.site, scratch)
            asked = overrides_of(arguments.extra) | ({} if arguments.views is None else {"views": arguments.views})
            ids = trained_as(model, arguments.bundle, "inference", asked)
            places = {"model": str(model), "dataset_dir": images, "output_dir": output}
            ids = places | {"probabilities": arguments.probabilities} | ids
            run_workflow(arguments.bundle, "inference", ids, asked=asked)

        segment_all(arguments, sources, segment, Path(scratch))
    return int(ExitCode.DONE)


def images_of(words: Sequence[str]) -> str | list[str]:
    """What the command line names as images: one folder, or a list of folders and images; absolute, each once.

    A pattern that the shell left alone is expanded here; one that is the name of a file is that file.

    Raises:
        Refused: nothing is named, or a pattern fits nothing.
    """
    problems, paths = Problems(), []
    for word in words:
        path = Path(word).expanduser()
        fitting = (
            [str(path)] if path.exists() or not glob.has_magic(word) else sorted(glob.glob(str(path), recursive=True))
        )
        if not fitting:
            problems.add(word, found="nothing that fits the pattern", expected="images, or folders of images")
        paths += [str(Path(found).resolve()) for found in fitting]
    if not words:
        problems.add(
            "IMAGES", found="none", expected="images, patterns or folders", hint="samfed infer BUNDLE IMAGES …"
        )
    problems.refuse_if_any()
    paths = list(dict.fromkeys(paths))
    return paths[0] if len(paths) == 1 and Path(paths[0]).is_dir() else paths
