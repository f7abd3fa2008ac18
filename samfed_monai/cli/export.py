"""``samfed export``: a trained network in a format that runs without this package, measured on the spot."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import take_overrides
from samfed_monai.cli.infer import images_of, shipped_model
from samfed_monai.cli.trained_model import add_other_size, run_or_file, trained_as, weights_file
from samfed_monai.config.bundles import bundle_of_command, find_bundle, packaged_bundles
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused
from samfed_monai.core.model_file import SETTINGS, any_image_size, read_header, trained_otherwise
from samfed_monai.data.classes import several

if TYPE_CHECKING:
    from torch import Tensor, nn

    from samfed_monai.federation.run_models import RunModels
    from samfed_monai.federation.workflow import WorkflowConfig

FORMATS = ("torchscript", "pt2", "onnx", "bundle")
_DEFAULT_BUNDLE = "samfed_skin"
_SAMPLES = 8  # images: enough that a mask of each kind of scene is among them, seconds on one core


def add_export_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed export [MODEL] --to FORMAT [--output FILE] [--bundle B] [--site S] [--images …] [--int8 H]``."""
    parser = subparsers.add_parser(
        "export",
        help="write a trained network as TorchScript, torch.export, ONNX or a MONAI bundle of its own",
        description="Writes a network that takes (B, 3, H, W) float32 in [0, 1], any B, and gives logits, in a format "
        "that runs without this package. What was written is compared with the network on sample images, and the table "
        "says what it costs; one that predicts something else is not kept.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        metavar="RUN|MODEL",
        nargs="?",
        help="a finished run's folder, or a weights file (default: the bundle's own)",
    )
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        required=True,
        help=f"{', '.join(FORMATS)}, or the name of an exporter that an installed package brings",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="new file, of a bundle a new folder (default: named after the model, in this folder)",
    )
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help=f"the bundle that it was trained with (default: the run's, {_DEFAULT_BUNDLE})",
    )
    parser.add_argument("--site", metavar="NAME", default="", help="of a run: this site's own model")
    parser.add_argument(
        "--images",
        metavar="IMAGES",
        nargs="+",
        help=f"compare, time and quantise on {_SAMPLES} of these images, folders or patterns (default: synthetic)",
    )
    parser.add_argument(
        "--int8",
        choices=("dynamic", "static"),
        help="of ONNX: write the network in 8-bit integers, by ONNX Runtime's own quantiser",
    )
    add_other_size(parser)
    take_overrides(parser, "inference.json", "inference.json")
    parser.set_defaults(run=run, kept="no file is left half written")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the file or folder; prints the table of what it costs, and its name."""
    from samfed_monai.config.entry_points import brought
    from samfed_monai.networks.export import BundleSource, Format, Int8, export_network, export_problems, table_of

    model, bundle = _named(arguments)
    outside = None if arguments.to in FORMATS else brought("exporters").named(arguments.to, FORMATS, "--to")
    to: Format | str = Format(arguments.to) if outside is None else arguments.to
    int8 = Int8(arguments.int8) if arguments.int8 else None
    suffix = to.suffix if isinstance(to, Format) else f".{to}"
    output = Path(arguments.output or f"{_stem(model)}{suffix}").expanduser()
    problems = Problems()
    if "adapter" in read_header(model):
        hint = "export the network of a run that this teacher guided"
        problems.add(str(model), found="a teacher's adapter", expected="a run, or a network's weights", hint=hint)
    problems.extend(export_problems(to, output, int8))
    problems.refuse_if_any()
    models = run_or_file(model)
    if arguments.site and isinstance(models, Path):
        hint = "leave it out, or name the folder of the run"
        raise Refused([Problem("--site", found="a weights file, which is one model", expected="a run", hint=hint)])
    with any_image_size(arguments.allow_other_size), tempfile.TemporaryDirectory(prefix="samfed-") as scratch:
        weights = weights_file(models, arguments.site, scratch)
        asked = overrides_of(arguments.extra)
        config = _checked(bundle, trained_as(weights, bundle, "inference", asked), asked)
        network = _filled(config, weights)
    images = _given(config, arguments.images) if arguments.images else _synthetic(config, bundle)
    shipped = isinstance(models, Path) and (bundle / "models") in models.parents
    source = BundleSource(bundle, shipped=shipped, threshold=config.value("threshold"))
    classes = config.optional("classes")
    named = classes if several(classes) else ()
    rows = export_network(network, to, output, images=images, int8=int8, bundle=source, classes=named, exporter=outside)
    sys.stdout.write(f"{len(images)} {'images' if arguments.images else 'synthetic images'} of {_shape(images)} px\n")
    sys.stdout.write("".join(f"{line}\n" for line in table_of(rows)))
    sys.stdout.write(f"{output}\n")
    return int(ExitCode.DONE)


def _named(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The run or weights file, and the folder of its bundle."""
    if arguments.model is None:
        bundle = find_bundle(arguments.bundle or _DEFAULT_BUNDLE)
        return shipped_model(str(bundle)), bundle
    model = Path(arguments.model).expanduser().resolve()
    own = _bundle_of(run_or_file(model)) if arguments.bundle is None else None
    return model, find_bundle(arguments.bundle or own or _DEFAULT_BUNDLE)


def _bundle_of(models: RunModels | Path) -> str | None:
    """The bundle that a run's command names, where it lies here."""
    name = None if isinstance(models, Path) else bundle_of_command(models.command)
    return name if name and (name in packaged_bundles() or Path(name).is_dir()) else None


def _stem(model: Path) -> str:
    return model.name if model.is_dir() else model.stem


_READ = frozenset({"threshold", "network_def", "preprocessing", "image_size", "classes"})
"""Ids of ``inference.json`` that an export asks for."""


def _checked(bundle: Path, ids: dict[str, Any], asked: dict[str, Any]) -> WorkflowConfig:
    """The bundle's ``inference.json`` with ids on top, of which the user gave ``asked``."""
    from samfed_monai.config.check import check_bundle
    from samfed_monai.config.parse import workflow_files
    from samfed_monai.federation.workflow import WorkflowConfig

    if problems := check_bundle(bundle, "inference", overrides=ids, ready=False, reads=_READ, asked=asked):
        raise Refused(problems)
    files = workflow_files(bundle, "inference")
    overrides = {"bundle_root": str(bundle), **ids}
    return WorkflowConfig(bundle, tuple(map(str, files)), overrides)


def _filled(config: WorkflowConfig, weights: Path) -> nn.Module:
    """The bundle's network with the weights of a file.

    Raises:
        Refused: weights of another network, or trained at another image size.
    """
    from samfed_monai.handlers.model_loader import trained_weights

    if problems := trained_otherwise(weights, {name: config.optional(name) for name in SETTINGS}):
        raise Refused(problems)
    network: nn.Module = config.value("network_def")
    network.load_state_dict(trained_weights(network, weights), strict=False)
    return network


def _given(config: WorkflowConfig, words: list[str]) -> Tensor:
    """Some of the images that the command line names, evenly chosen, as the network sees them; at least two."""
    import torch

    from samfed_monai.data.image_folder import image_folder

    records, read = image_folder(images_of(words)), config.value("preprocessing")
    chosen = torch.linspace(0, len(records) - 1, min(_SAMPLES, len(records))).round().int().tolist()
    images = torch.stack(
        [torch.as_tensor(read(dict(records[index]))["image"]).as_subclass(torch.Tensor) for index in chosen]
    )
    return images if len(images) > 1 else images.repeat(2, 1, 1, 1)


def _synthetic(config: WorkflowConfig, bundle: Path) -> Tensor:
    """The same images on every machine: (B, 3, H, W) float32 in [0, 1]."""
    import numpy as np
    import torch

    from samfed_monai.data.synthetic_scene import PUBLIC, render_scene

    side = int(config.value("image_size"))
    drawn = [np.random.default_rng(seed) for seed in range(_SAMPLES)]
    look = PUBLIC["polyp" if "polyp" in bundle.name else "skin"]
    pictures = [render_scene(each, (side, side), look)[0] for each in drawn]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _shape(images: Tensor) -> str:
    return " x ".join(str(side) for side in images.shape[-2:])
