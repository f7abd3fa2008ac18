"""``samfed model`` and ``samfed export``: writes a run's model as one file, or in a format that runs without samfed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import add_command, add_other_size, add_site, take_overrides
from samfed_monai.cli.infer import images_of
from samfed_monai.config.bundles import bundle_of_command, is_bundle, packaged_bundles
from samfed_monai.config.options import shipped
from samfed_monai.config.overrides import overrides_of
from samfed_monai.config.own_images import short_repr
from samfed_monai.config.parse import MISSING, join_id, resolve, walk
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import absent
from samfed_monai.core.model_file import any_image_size
from samfed_monai.core.validators import require
from samfed_monai.data.classes import class_threshold_problems, is_multiclass

if TYPE_CHECKING:
    from torch import Tensor

    from samfed_monai.federation.workflow import WorkflowConfig
    from samfed_monai.inference.model import TrainedModel

_DEFAULT_BUNDLE = "samfed_skin"
_READ = frozenset({"threshold", "network_def", "preprocessing", "image_size", "classes"})
"""Ids of ``inference.json`` that an export reads."""
_OTHER_STEPS = ("preprocessing", "inferer", "postprocessing")
"""Ids around the network, which must be those of the packaged bundles, as every exported form assumes."""
_SET_BY_EXPORT = ("image_size", "threshold", "classes", "amp")  # exceptions, which an exported form sets itself
_SAMPLES = 8  # images: enough to include a mask of each kind of scene; takes seconds on one core


def add_export_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed export [MODEL] --to FORMAT [--output FILE] [--bundle B] [--site S] [--images …] [--int8]``."""
    parser = add_command(subparsers, "export", run=run, kept="no incomplete file is left")
    about = "a finished run's folder, a weights file, or a bundle with weights (default: the skin bundle)"
    parser.add_argument("model", metavar="RUN|MODEL", nargs="?", help=about)
    about = "torchscript, pt2, onnx, bundle, or the name of an exporter from an installed package"
    parser.add_argument("--to", metavar="FORMAT", required=True, help=about)
    about = "new file, or new folder for a bundle (default: named after the model, in the current folder)"
    parser.add_argument("--output", metavar="FILE", help=about)
    about = f"the bundle that the model was trained with (default: the run's bundle, or {_DEFAULT_BUNDLE})"
    parser.add_argument("--bundle", metavar="BUNDLE", help=about)
    add_site(parser)
    about = f"compare and time on {_SAMPLES} of these images, folders or patterns (default: synthetic)"
    parser.add_argument("--images", metavar="IMAGES", nargs="+", help=about)
    about = "for ONNX: quantise matrix products to 8-bit integers with ONNX Runtime"
    parser.add_argument("--int8", action="store_true", help=about)
    add_other_size(parser)
    unread = ("model", "dataset_dir", "output_dir", "probabilities", "batch_size", "amp", "views")
    take_overrides(parser, "inference.json", "inference.json", unread=unread)


def run(arguments: argparse.Namespace) -> None:
    """Writes the file or folder; prints the table of its costs, and its name."""
    from samfed_monai.config.targets import entry_points_of
    from samfed_monai.inference.export import FORMATS, export_network, export_problems, table_of
    from samfed_monai.inference.model import Kind, trained_network

    model, to = model_of(arguments.model, arguments.bundle), arguments.to
    exporter = None if to in FORMATS else entry_points_of("exporters").named(to, tuple(FORMATS), "--to")
    stem = model.path.name if model.kind is Kind.RUN else model.path.stem
    output = Path(arguments.output or f"{stem}{f'.{to}' if exporter else FORMATS[to][0]}").expanduser()
    if model.kind is Kind.ADAPTER:
        hint = "export the network of a run that this teacher guided"
        raise refused(model.path, found="a teacher's adapter", expected="a run, or a network's weights", hint=hint)
    require(export_problems(to, output, int8=arguments.int8))  # before the network is built
    overrides = overrides_of(arguments.extra)
    with any_image_size(arguments.allow_other_size):
        ids = model.ids("inference", overrides, arguments.site)
        config = model.config("inference", ids, given=overrides, reads=_READ, ready=False)
        classes, threshold = config.optional("classes"), config.value("threshold")
        classes = classes if is_multiclass(classes) else ()
        require(around_problems(config.parser().get()), class_threshold_problems("--threshold", threshold, classes))
        network = trained_network(config)
    images = _load_images(config, arguments.images) if arguments.images else _render_images(config, model.bundle)
    rows = export_network(
        network,
        to,
        output,
        images=images,
        int8=arguments.int8,
        bundle=model.bundle,
        shipped=(model.bundle / "models") in model.path.parents,
        threshold=threshold,
        classes=classes,
        quality=model.quality,
        exporter=exporter,
    )
    shape = " x ".join(map(str, images.shape[-2:]))
    head = f"{len(images)} {'images' if arguments.images else 'synthetic images'} of {shape} px"
    sys.stdout.write(f"{head}\n{table_of(rows)}{output}\n")


def model_of(path: str | None, bundle: str | None) -> TrainedModel:
    """Returns the model with the named bundle; by default, a run's with that of its command, and weights with the
    skin bundle.

    Raises:
        Refused: the run's command names no bundle, or one that does not exist here.
    """
    from samfed_monai.inference.model import TrainedModel

    is_packaged = path in packaged_bundles() and not Path(str(path)).exists()
    if path is not None and bundle is None and (is_packaged or is_bundle(Path(path).expanduser())):
        return TrainedModel(path)
    model = TrainedModel(bundle or _DEFAULT_BUNDLE, path)
    if model.run is None or bundle is not None:
        return model
    own = bundle_of_command(model.run.command)
    if own is None or not (own in packaged_bundles() or is_bundle(Path(own).expanduser())):
        found, expected = f"{own}, which is not here" if own else "none in its command", f"the bundle of {path}"
        raise refused("--bundle", found, expected, "add --bundle, or export from the folder where the run started")
    return TrainedModel(own, path)


def around_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields problems of steps around the network in ``inference.json`` that exported forms cannot reproduce.

    Args:
        content: merged configuration, with the command line's ids.
    """
    packaged = {**shipped("inference.json")[0], **{name: content[name] for name in _SET_BY_EXPORT if name in content}}
    hint = f"undo the change, or export with --bundle {_DEFAULT_BUNDLE} and apply this step where the network runs"
    for section in _OTHER_STEPS:
        ours, theirs = (
            {id: resolve(each, part) for id, part in walk(each.get(section, {})) if not isinstance(part, dict | list)}
            for each in (content, packaged)
        )
        differs = (place for place in {**ours, **theirs} if ours.get(place, MISSING) != theirs.get(place, MISSING))
        if (place := next(differs, None)) is not None:
            found, expected = (short_repr(each[place]) if place in each else "nothing" for each in (ours, theirs))
            where = f"inference.json -> {join_id((section, *place))}"
            yield Problem(where, found, f"{expected}, as in the packaged bundles", hint)


def _load_images(config: WorkflowConfig, words: list[str]) -> Tensor:
    """Returns some of the named images, evenly chosen and preprocessed; at least two (a single one is repeated)."""
    import torch

    from samfed_monai.data.image_folder import image_folder

    records, read = image_folder(images_of(words)), config.value("preprocessing")
    chosen = torch.linspace(0, len(records) - 1, min(_SAMPLES, len(records))).round().int().tolist()
    inputs = [torch.as_tensor(read(dict(records[index]))["image"]).as_subclass(torch.Tensor) for index in chosen]
    images = torch.stack(inputs)
    return images if len(images) > 1 else images.repeat(2, 1, 1, 1)


def _render_images(config: WorkflowConfig, bundle: Path) -> Tensor:
    """Returns synthetic images, the same on every machine: (B, 3, H, W) float32 in [0, 1]."""
    import numpy as np
    import torch

    from samfed_monai.data.synthetic import PUBLIC, render_scene

    side = int(config.value("image_size"))
    generators = [np.random.default_rng(seed) for seed in range(_SAMPLES)]
    look = PUBLIC["polyp" if "polyp" in bundle.name else "skin"]
    pictures = [render_scene(generator, (side, side), look)[0] for generator in generators]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def add_model_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed model RUN --output FILE [--site S] [--states DIR]``."""
    parser = add_command(subparsers, "model", run=run_model)
    parser.add_argument("folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--site", metavar="NAME", default="", help="this site's own model (default: the server's)")
    about = "for a run on FLARE, at the site: the folder state/<run>/<site> in its cache_dir"
    parser.add_argument("--states", metavar="DIR", help=about)
    about = "new file: NAME.safetensors, or NAME.pt, a plain state dict in half precision as bundles ship it"
    parser.add_argument("--output", metavar="FILE", required=True, help=about)


def run_model(arguments: argparse.Namespace) -> None:
    """Writes the file and prints its name."""
    from samfed_monai.federation.run_models import RunModels
    from samfed_monai.metrics.quality import Quality, read_quality, write_quality

    if not arguments.output.endswith((".safetensors", ".pt")):
        expected = "a name that ends in .safetensors, or in .pt for a bundle's models/model.pt"
        raise refused("--output", found=repr(arguments.output), expected=expected)
    # both would share one quality file
    require(*(absent("--output", Path(arguments.output).with_suffix(each)) for each in (".safetensors", ".pt")))
    if arguments.states and not arguments.site:
        raise refused("--states", found="no --site", expected="--site NAME, the site of these states")
    written = RunModels(arguments.folder).write(arguments.output, arguments.site, states=arguments.states)
    if (quality := read_quality(Path(arguments.folder).expanduser().resolve())) != Quality():
        write_quality(quality, written)
    sys.stdout.write(f"{written}\n")
