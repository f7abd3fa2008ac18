"""A trained network in formats that run without this package, each measured beside the network that it was made of."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused, machine_failure
from samfed_monai.core.io import PUBLIC, read_json, require_writable, write_json, write_text
from samfed_monai.core.model_file import USAGE, usage_of
from samfed_monai.inference.onnx_network import CLASSES, OnnxNetwork
from samfed_monai.metrics.quality import Quality
from samfed_monai.metrics.quality_file import QUALITY
from samfed_monai.networks.inferer import AutocastInferer, bf16_gains
from samfed_monai.networks.input_size import size_problems

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What ONNX needs beside torch: the extra ``export``."""
SAME_LOGITS = 1e-3
"""Largest difference of logits, as a share of the largest logit where that is above 1. Float32 sums in another order
differ by about 1e-5; a network that was exported wrongly differs by whole logits."""
SAME_MASKS = 0.995
"""Least Dice of masks in int8 to those of float32, over all images together."""

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_BATCH = 4096  # torch.export needs an upper bound; this one is above any batch
_REPEATS = 3
_FIRST_LINE = 200  # characters of another library's error


class Format(str, Enum):
    """What a network can be exported to."""

    TORCHSCRIPT = "torchscript"
    """A traced program for ``torch.jit.load`` and LibTorch."""
    PT2 = "pt2"
    """A program of ``torch.export``, for ``torch.export.load`` and its compilers."""
    ONNX = "onnx"
    """For ONNX Runtime and others."""
    BUNDLE = "bundle"
    """A MONAI inference bundle around a TorchScript program: a folder that plain MONAI runs."""

    @property
    def suffix(self) -> str:
        """What the name of a file or folder of this format ends in."""
        return {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx", "bundle": "_bundle"}[self.value]


class Int8(str, Enum):
    """How ONNX Runtime's own quantiser makes an ONNX file's numbers integers of 8 bits."""

    DYNAMIC = "dynamic"
    """Matrix products, what they take scaled image by image."""
    STATIC = "static"
    """Convolutions and matrix products, what they take scaled as sample images ask for."""


@dataclass(frozen=True)
class Measured:
    """What one form of a network costs, and how far its predictions are from those of the network in float32.

    Args:
        name: of the form, for a reader.
        megabytes: of its file, in 10^6 bytes.
        images_per_second: in batches of the sample images, on the CPU.
        difference: largest difference of a logit.
        pixels: share of mask pixels that differ, in [0, 1].
        dice: of the masks to those in float32, all images and classes together; 1 where both are empty.
    """

    name: str
    megabytes: float
    images_per_second: float
    difference: float = 0.0
    pixels: float = 0.0
    dice: float = 1.0


@dataclass(frozen=True)
class BundleSource:
    """What an exported bundle takes over from the one that its network belongs to.

    Args:
        folder: of that bundle.
        shipped: whether the network is the one that it ships; its metadata's scores, data, authors and licence are not
            those of another network.
        threshold: probability from which a pixel is foreground, of one class.
    """

    folder: Path
    shipped: bool
    threshold: float = 0.5


Run = Callable[[Tensor], Tensor]

Exporter = Callable[[nn.Module, Path, Tensor], Run]
"""Of another package (entry points ``samfed_monai.exporters``): writes a network to a path, with some images
``(B, 3, H, W)`` to trace with, and returns how to run what lies there: images to logits."""


def export_network(
    network: nn.Module,
    to: Format | str,
    output: str | Path,
    *,
    images: Tensor,
    int8: Int8 | str | None = None,
    bundle: BundleSource | None = None,
    classes: Sequence[str] = (),
    quality: Quality | None = None,
    exporter: Exporter | None = None,
) -> list[Measured]:
    """Writes a network in another format, if that predicts the same; nothing is written otherwise.

    What is written takes ``(B, 3, H, W)`` float32 in [0, 1], any B and the H and W of ``images``, and gives logits
    ``(B, 1, H, W)``, of K classes ``(B, K + 1, H, W)`` with the background first. It is read back from the disk and
    compared with the network, for all images at once and for one alone. It does not check the images that it is given.

    Args:
        network: to export; it is put into eval mode and moved to the CPU.
        to: the format; with ``exporter``, its name.
        output: a new file, or a new folder for a bundle.
        images: (B, 3, H, W) float32 in [0, 1], B >= 2: what is compared, timed, and shown to the quantiser.
        int8: of ONNX: which quantised form to write; ``None`` writes float32. Both are measured in any case.
        bundle: of a bundle: what it takes over from the one that the network belongs to.
        classes: names of several classes, in the order of their logits; empty for one.
        quality: what is known of how far the network's masks are to be trusted. What is written holds it, the classes
            and :func:`~samfed_monai.core.model_file.usage_of`, but for the format of another package.
        exporter: of another package, what writes the format.

    Returns:
        the network in float32, then what was written, then, of ONNX, its other forms, then the network under bfloat16
        autocast, where :func:`~samfed_monai.networks.inferer.bf16_gains`.

    Raises:
        Refused: ``output`` exists; a package is missing; the images' size is none of the network's; the format cannot
            take the network; what was made of it predicts something else.
        ValueError: a bundle without ``bundle``.
    """
    to, output, int8 = to if exporter else Format(to), Path(output), None if int8 is None else Int8(int8)
    if to is Format.BUNDLE and bundle is None:
        raise ValueError("export_network: a bundle takes metadata over from another one: bundle=BundleSource(...)")
    problems = Problems()
    problems.extend(export_problems(to, output, int8))
    problems.extend(size_problems(network, height=images.shape[-2], width=images.shape[-1]))
    problems.refuse_if_any()
    network = network.eval().cpu()
    usage = usage_of(images.shape[-1], classes, 0.5 if bundle is None else bundle.threshold)
    known = {QUALITY: quality.as_dict()} if quality is not None and quality != Quality() else {}
    about = {USAGE: usage, **{key: json.dumps(each) for key, each in known.items()}}
    about |= {CLASSES: json.dumps(list(classes))} if classes else {}
    with torch.no_grad():
        logits = network(images)
    size = sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6
    rows = [Measured("torch, float32", size, len(images) / _seconds(network, images))]
    require_writable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export.", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        if to is Format.ONNX:
            written, more = _onnx_forms(network, images, logits, scratch, int8, about)
            rows += more
        else:
            name, write = (str(to), exporter) if exporter else _our_exporter(Format(to), about)
            form = f"--to {getattr(to, 'value', to)}"
            written = scratch / (output.name if exporter else "model.pt2" if to is Format.PT2 else "model.ts")
            rows.append(_written(name, form, write, network, written, images, logits))
            _require_same(rows[-1], form, logits)
        if bf16_gains("cpu"):
            run = partial(AutocastInferer(True), network=network)
            rows.append(_compared("torch, bfloat16", size, run, images, logits))
        if to is Format.BUNDLE and bundle is not None:
            written = _bundle(scratch / "bundle", written, bundle, images.shape[-1], classes, {USAGE: usage, **known})
        os.rename(written, output)
    return rows


def export_problems(to: Format | str, output: Path, int8: Int8 | None = None) -> list[Problem]:
    """What is wrong with an export before any network is built: the place, the packages, what does not go together."""
    problems = Problems()
    if output.exists():
        problems.add("--output", found=f"{output}, which exists", expected="a new name", hint="choose another one")
    if int8 is not None and to is not Format.ONNX:
        problems.add(
            "--int8", found=f"--to {getattr(to, 'value', to)}", expected="--to onnx, whose runtime has the quantiser"
        )
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if to is Format.ONNX and missing:
        hint = "pip install 'samfed-monai[export]', or in a clone: pip install -c constraints.txt -e '.[export]'"
        problems.add("--to onnx", found=f"no package {', '.join(missing)}", expected=", ".join(PACKAGES), hint=hint)
    return list(problems)


def table_of(rows: Sequence[Measured]) -> list[str]:
    """Lines of plain text: a row for each form of the network."""
    lines = [("form", "MB", "images/s", "logits differ by", "mask pixels differ", "Dice to float32")]
    for index, row in enumerate(rows):
        size = f"{row.megabytes:.1f}" if row.megabytes >= 1 else f"{row.megabytes:.3f}"
        away = (f"{row.difference:.1e}", f"{100 * row.pixels:.3f} %", f"{row.dice:.4f}") if index else ("-", "-", "-")
        lines.append((row.name, size, f"{row.images_per_second:.1f}", *away))
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    return ["  ".join([line[0].ljust(first), *map(str.rjust, line[1:], widths)]).rstrip() for line in lines]


@contextmanager
def _taken(network: nn.Module, form: str) -> Iterator[None]:
    """Refuses a network at which another library's exporter, quantiser or runtime fails, whatever it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trace's constants, and the exporters' own deprecations
            yield
    except (Refused, KeyboardInterrupt):
        raise
    except Exception as error:
        if machine_failure(error) is not None:
            raise
        reason = next(
            (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
        )
        found, hint = f"{type(network).__name__} ({reason[:_FIRST_LINE]})", "try another format; nothing was written"
        expected = "a network that this format can take"
        raise Refused([Problem(form, found=found, expected=expected, hint=hint)]) from error


def _to_torchscript(network: nn.Module, path: Path, images: Tensor, *, about: dict[str, str]) -> Run:
    buffer = io.BytesIO()  # on a full disk torch's own writer ends the process, and leaves half a file
    torch.jit.save(torch.jit.trace(network, images, check_trace=False), buffer, about)
    path.write_bytes(buffer.getbuffer())
    program: Run = torch.jit.load(path)
    return program


def _to_pt2(network: nn.Module, path: Path, images: Tensor, *, about: dict[str, str]) -> Run:
    buffer = io.BytesIO()  # as above
    torch.export.save(_program(network, images), buffer, extra_files=about)
    path.write_bytes(buffer.getbuffer())
    return torch.export.load(path).module()


def _to_onnx(network: nn.Module, path: Path, images: Tensor) -> None:
    torch.onnx.export(
        _program(network, images),
        f=path,
        input_names=["image"],
        output_names=["logits"],
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def _program(network: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=_LONGEST_BATCH)
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


def _our_exporter(to: Format, about: dict[str, str]) -> tuple[str, Exporter]:
    """What a format's row is called, and what writes it with texts about the network."""
    if to is Format.PT2:
        return "torch.export, float32", partial(_to_pt2, about=about)
    return "TorchScript, float32", partial(_to_torchscript, about=about)


def _written(
    name: str, form: str, write: Exporter, network: nn.Module, path: Path, images: Tensor, logits: Tensor
) -> Measured:
    """Writes a file and measures it.

    Args:
        name: of the row.
        form: option that asked for it, for messages.
        write: ours, or another package's.
    """
    with _taken(network, form), _quiet(), torch.no_grad():
        run = write(network, path, images[:2])
        if not (path.exists() and callable(run)):
            found = "nothing at its path" if not path.exists() else type(run).__name__
            expected = "an exporter that writes to its path and returns how to run that"
            raise Refused([Problem(form, found=found, expected=expected)])
        return _compared(name, path.stat().st_size / 1e6, run, images, logits)


def _onnx_forms(
    network: nn.Module,
    images: Tensor,
    logits: Tensor,
    scratch: Path,
    int8: Int8 | None,
    about: dict[str, str],
) -> tuple[Path, list[Measured]]:
    """The file to hand out, and what all forms measure, that one first; each holds the texts about the network."""

    def write(how: Int8 | None) -> Exporter:
        def written(network: nn.Module, path: Path, some: Tensor) -> Run:
            if how is None:
                _to_onnx(network, path, some)
            else:
                _quantise(whole, path, how, images)
            _describe(path, about)
            return OnnxNetwork(path)

        return written

    whole = scratch / "float32.onnx"
    files: dict[Int8 | None, Path] = {}
    rows: dict[Int8 | None, Measured] = {}
    for how in (None, *Int8):
        name = "ONNX Runtime, float32" if how is None else f"ONNX Runtime, int8 {how.value}"
        form = "--to onnx" if how is None else f"--int8 {how.value}"
        files[how] = whole if how is None else scratch / f"{how.value}.onnx"
        try:
            rows[how] = _written(name, form, write(how), network, files[how], images, logits)
        except Refused:
            if how in (None, int8):
                raise
            rows[how] = Measured(f"{name}: not taken", *[float("nan")] * 5)
        if how is None:
            _require_same(rows[how], form, logits)
    chosen = rows.pop(int8)
    if int8 is not None and chosen.dice < SAME_MASKS:
        found, expected = f"a Dice of {chosen.dice:.4f} to masks in float32", f"at least {SAME_MASKS}"
        hint = "give other --images for its scales, the other way, or leave --int8 out; nothing was written"
        raise Refused([Problem(f"--int8 {int8.value}", found=found, expected=expected, hint=hint)])
    return files[int8], [chosen, *rows.values()]


def _describe(path: Path, properties: dict[str, str]) -> None:
    """Writes an ONNX file's properties, among which :class:`OnnxNetwork` finds classes and quality."""
    import onnx

    content = onnx.load(path)
    onnx.helper.set_model_props(content, properties)
    onnx.save(content, path)


def _quantise(source: Path, target: Path, how: Int8, images: Tensor) -> None:
    """Writes an ONNX file in int8 by ONNX Runtime's own quantiser, from one in float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None].numpy()}

    ready = source.with_name("ready.onnx")
    if not ready.exists():
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    products, weights = ["MatMul", "Gemm"], {"per_channel": True, "weight_type": QuantType.QInt8}
    if how is Int8.DYNAMIC:  # without convolutions, which scaled image by image are far less exact and no faster
        quantize_dynamic(str(ready), str(target), op_types_to_quantize=products, **weights)
    else:
        quantize_static(str(ready), str(target), Samples(), op_types_to_quantize=["Conv", *products], **weights)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the records that torch.onnx and the quantiser write on the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _compared(name: str, megabytes: float, run: Run, images: Tensor, logits: Tensor) -> Measured:
    with torch.no_grad():
        found, alone = run(images), run(images[:1])
    differences = (found - logits).abs().max(), (alone - logits[:1]).abs().max()
    ours, theirs = _drawn(logits), _drawn(found)
    both = int((ours > 0).sum() + (theirs > 0).sum())
    return Measured(
        name,
        megabytes=megabytes,
        images_per_second=len(images) / _seconds(run, images),
        difference=float(max(differences)),
        pixels=float((ours != theirs).float().mean()),
        dice=2 * int(((ours == theirs) & (ours > 0)).sum()) / both if both else 1.0,
    )


def _drawn(logits: Tensor) -> Tensor:
    """Class values (B, H, W), 0 the background's, of logits (B, C, H, W)."""
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def _seconds(run: Run, images: Tensor) -> float:
    """Of one pass over the images: the fastest of a few, after one that counts for nothing."""
    times = []
    with torch.no_grad():
        for _ in range(1 + _REPEATS):
            begun = time.perf_counter()
            run(images)
            times.append(time.perf_counter() - begun)
    return min(times[1:])


def _require_same(row: Measured, where: str, logits: Tensor) -> None:
    most = SAME_LOGITS * max(1.0, float(logits.abs().max()))
    if not row.difference <= most:  # nan is refused, too
        found, expected = f"logits that differ by {row.difference:.2g}", f"at most {most:.2g}"
        hint = "try another format; nothing was written"
        raise Refused([Problem(where, found=found, expected=expected, hint=hint)])


_PACKAGES_OF_A_BUNDLE = ("pytorch-ignite", "pillow", "scipy", "tqdm")
_UNKNOWN = "to be filled in by whoever trained the network"


def _bundle(
    folder: Path, program: Path, source: BundleSource, size: int, classes: Sequence[str], about: Mapping[str, Any]
) -> Path:
    """A folder that ``python -m monai.bundle run`` takes: the program, how it is run, what it is, its terms."""
    config = read_json(_TEMPLATES / "exported_inference.json") | {"image_size": size, "threshold": source.threshold}
    if classes:  # a mask has the value of the largest logit
        config |= read_json(_TEMPLATES / "exported_classes.json")
        del config["threshold"]
    write_json(folder / "configs" / "inference.json", config, mode=PUBLIC)
    given = read_json(source.folder / "configs" / "metadata.json")
    metadata = exported_metadata(given, size, shipped=source.shipped, classes=classes) | dict(about)
    write_json(folder / "configs" / "metadata.json", metadata, mode=PUBLIC)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(("background", *classes)))
    about = {"masks": names, "channels": len(classes) + 1} if classes else {"masks": "0 and 255", "channels": 1}
    readme = (_TEMPLATES / "exported_readme.md").read_text().format(name=metadata["name"], size=size, **about)
    write_text(folder / "docs" / "README.md", readme, mode=PUBLIC)
    (folder / "models").mkdir()
    os.rename(program, folder / "models" / "model.ts")
    for name in ("LICENSE", "docs/data_license.txt"):
        if source.shipped and (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    return folder


def exported_metadata(
    metadata: Mapping[str, Any], size: int, *, shipped: bool, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Metadata of an exported bundle.

    Args:
        metadata: content of ``metadata.json`` of the bundle that its network belongs to.
        size: of the images at the network, in pixels.
        shipped: see :class:`BundleSource`.
        classes: names of several classes; empty for one.
    """
    content: dict[str, Any] = deepcopy(dict(metadata))
    needed = content.get("required_packages_version", {})
    content["required_packages_version"] = {name: needed[name] for name in _PACKAGES_OF_A_BUNDLE if name in needed}
    formats = content["network_data_format"]
    for described in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        described["spatial_shape"] = [size, size]
    if classes:
        names = ("background", *classes)
        channels = {str(number): name for number, name in enumerate(names)}
        formats["outputs"]["pred"] |= {"num_channels": len(names), "channel_def": channels}
        content["pred_classes"] = f"{len(names)} channels of logits, the largest is the pixel's: {', '.join(names)}"
    if not shipped:
        content |= {"eval_metrics": {}, "data_source": _UNKNOWN, "authors": _UNKNOWN, "copyright": _UNKNOWN}
    return content
