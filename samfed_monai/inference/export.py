"""Exports a trained network to formats that run without this package, and compares the result with the network.

Also runs exported ONNX files as networks.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused, machine_failure, refused
from samfed_monai.core.io import PUBLIC, absent, parse_json, read_json, temporary_folder, write_json, write_text
from samfed_monai.core.model_file import USAGE, usage_of
from samfed_monai.core.run_log import muted, without_warnings
from samfed_monai.core.text import aligned
from samfed_monai.core.validators import installed, require
from samfed_monai.data.classes import class_problems, is_multiclass, outputs_of
from samfed_monai.metrics.quality import QUALITY, Quality, quality_of
from samfed_monai.networks.inferer import AutocastInferer, bf16_gains
from samfed_monai.networks.input_size import size_problems

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that ONNX needs besides torch: the extra ``export``."""
CLASSES = "classes"
"""Property of an ONNX file with the names of several classes, as JSON."""
RUNTIMES = {"onnxruntime": "export", "openvino": "openvino"}
"""Runtimes for ONNX files, and the extras that install them."""
SAME_LOGITS = 1e-3
"""Largest allowed difference of logits, relative to the largest logit if that is above 1. Float32 sums in another order
differ by about 1e-5, a wrongly exported network by whole logits."""
SAME_MASKS = 0.995
"""Smallest allowed Dice between masks in int8 and in float32, over all images together."""

_TEMPLATES = Path(__file__).parent / "templates"
_MAX_BATCH = 4096  # torch.export needs an upper bound
_MAX_ERROR = 200  # characters shown of another library's error

Run = Callable[[Tensor], Tensor]

Exporter = Callable[[nn.Module, Path, Tensor], Run]
"""An exporter of another package (entry points ``samfed_monai.exporters``): writes a network to a path, with images
``(B, 3, H, W)`` to trace it with, and returns a function that runs the result: images to logits."""


class OnnxNetwork(nn.Module):
    """Runs an ONNX file with ONNX Runtime or OpenVINO on the CPU, with torch's number of threads at construction.

    It has no parameters, cannot be trained, and does not check its input. ONNX Runtime computes in the file's data
    types; OpenVINO in bfloat16 if the processor supports it, and one image at a time, which is fastest there.

    Args:
        path: a file from ``samfed export --to onnx``, in float32 or int8, or a similar one: one input ``(B, 3, H, W)``
            float32 in [0, 1], one output of logits, ``(B, 1, H, W)``, or ``(B, K + 1, H, W)`` for K classes, with the
            class names in the file.
        runtime: ``"onnxruntime"`` or ``"openvino"``; the first reads the file's names and shapes in both cases.

    Attributes:
        size: height and width of the input, in pixels.
        classes: names of several classes; empty for one.
        quality: the model's quality; an empty one if the file has no such property.

    Raises:
        Refused: the runtime is not installed; no such file, or not an ONNX file; a network of another kind; an invalid
            quality property.
        ValueError: an unknown runtime.
    """

    def __init__(self, path: str | Path, runtime: str = "onnxruntime") -> None:
        super().__init__()
        path = Path(path)
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
        for package in dict.fromkeys(("onnxruntime", runtime)):
            require(installed(package, RUNTIMES[package], str(path), "no such package", f"{package} to run it"))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exception classes are not public
            if machine_failure(error) is not None:
                raise
            found = next(iter(str(error).strip().splitlines()), type(error).__name__)[:_MAX_ERROR]
            raise refused(path, found=found, expected="an ONNX file") from None
        properties = self._session.get_modelmeta().custom_metadata_map
        self.classes = _class_names(properties.get(CLASSES, "[]"))
        self.quality = Quality()
        if text := properties.get(QUALITY):
            self.quality = quality_of(text, f"{path} -> {QUALITY}", "export the network again: samfed export --to onnx")
        self.size = self._check_signature(path)
        self._run = self._by_openvino(path) if runtime == "openvino" else self._by_onnxruntime

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (B, C, H, W) float32 for images (B, 3, H, W) float32 in [0, 1] of ``size``."""
        return torch.from_numpy(self._run(images.detach().as_subclass(Tensor).cpu().numpy())).to(images.device)

    def _by_onnxruntime(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: numbers})[0])

    def _by_openvino(self, path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Returns a function that runs the file with OpenVINO, compiled for one image at a time."""
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        model.reshape([1, 3, *self.size])
        hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
        compiled = core.compile_model(model, "CPU", hints)
        # copied, as the next image is computed into the same memory
        return lambda numbers: np.concatenate([compiled(image[None])[0].copy() for image in numbers])

    def _check_signature(self, path: Path) -> tuple[int, int]:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._input = inputs[0].name
        shape: list[Any] = list(inputs[0].shape)
        sides = shape[2:]
        whole = len(shape) == 4 and shape[1] == 3 and all(isinstance(side, int) for side in sides)
        single = len(inputs) == 1 and len(outputs) == 1 and inputs[0].type == "tensor(float)"
        if not (whole and single and len(outputs[0].shape) == 4 and outputs[0].shape[1] == outputs_of(self.classes)):
            found = f"{_describe(inputs)} -> {_describe(outputs)}"
            named = f", for {', '.join(self.classes)}" if self.classes else ""
            expected = f"float32 (B, 3, H, W) -> (B, {outputs_of(self.classes)}, H, W){named}"
            raise refused(path, found=found, expected=expected, hint="use a file written by `samfed export --to onnx`")
        return int(sides[0]), int(sides[1])


def _class_names(text: str) -> list[str]:
    """Returns the names of several classes from a file's property; none if it is invalid."""
    try:
        names = parse_json(text)
    except ValueError:
        return []
    return names if not class_problems(names, CLASSES) and is_multiclass(names) else []


def _describe(values: Any) -> str:
    return ", ".join(f"{value.type} {tuple(value.shape)}" for value in values)


class Measured(NamedTuple):
    """Cost of one form of a network, and the difference of its predictions from those of the network in float32.

    Masks are cut at the threshold of the export.

    Args:
        name: of the form, for display.
        megabytes: size of its file, in 10^6 bytes.
        images_per_second: in one batch of the sample images, on the CPU.
        difference: largest difference of a logit.
        pixels: share of mask pixels that differ, in [0, 1].
        dice: Dice of the masks with those in float32, over all images and classes; 1 if both are empty.
    """

    name: str
    megabytes: float
    images_per_second: float
    difference: float = 0.0
    pixels: float = 0.0
    dice: float = 1.0


def _to_torchscript(network: nn.Module, path: Path, images: Tensor, about: dict[str, str]) -> Run:
    buffer = io.BytesIO()  # on a full disk torch's own writer ends the process and leaves a partial file
    torch.jit.save(torch.jit.trace(network, images, check_trace=False), buffer, about)
    path.write_bytes(buffer.getbuffer())
    program: Run = torch.jit.load(path)
    return program


def _to_pt2(network: nn.Module, path: Path, images: Tensor, about: dict[str, str]) -> Run:
    buffer = io.BytesIO()  # as above
    torch.export.save(_program(network, images), buffer, extra_files=about)
    path.write_bytes(buffer.getbuffer())
    return torch.export.load(path).module()


def _to_onnx(network: nn.Module, path: Path, images: Tensor, about: dict[str, str]) -> Run:
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(_program(network, images), f=path, external_data=False, dynamo=True, verbose=False, **names)
    return _add_texts(path, about)


def _to_int8(network: nn.Module, path: Path, images: Tensor, about: dict[str, str], *, float32_file: Path) -> Run:
    """Converts matrix products of the ONNX file ``float32_file`` to 8 bits with ONNX Runtime's quantiser. Convolutions
    stay in float32: with dynamic scaling they are far less exact and no faster."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name("ready.onnx")
    quant_pre_process(str(float32_file), str(ready), skip_symbolic_shape=True)
    options: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QInt8}
    quantize_dynamic(str(ready), str(path), per_channel=True, **options)
    if not any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(path).graph.node):
        raise refused("--int8", "a network without any", "matrix products to convert", "leave it out")
    return _add_texts(path, about)


def _add_texts(path: Path, about: dict[str, str]) -> Run:
    """Adds texts to an ONNX file, such as classes and quality, and returns its network."""
    import onnx

    content = onnx.load(path)
    onnx.helper.set_model_props(content, about)
    onnx.save(content, path)
    return OnnxNetwork(path)


def _program(network: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


FORMATS: Mapping[str, tuple[str, Callable[[nn.Module, Path, Tensor, dict[str, str]], Run]]] = {
    "torchscript": (".ts", _to_torchscript),
    "pt2": (".pt2", _to_pt2),
    "onnx": (".onnx", _to_onnx),
    "bundle": ("_bundle", _to_torchscript),
}
"""Export formats: a traced program for ``torch.jit.load`` and LibTorch, a program of ``torch.export``, ONNX, and a
MONAI inference bundle around a traced program, which plain MONAI runs. Each has the suffix of its file or folder, and a
function that writes a network with texts about it and returns a function that runs the result."""


def export_network(
    network: nn.Module,
    to: str,
    output: str | Path,
    *,
    images: Tensor,
    int8: bool = False,
    bundle: Path | None = None,
    shipped: bool = False,
    threshold: float = 0.5,
    classes: Sequence[str] = (),
    quality: Quality | None = None,
    exporter: Exporter | None = None,
) -> list[Measured]:
    """Writes a network in another format if that gives the same predictions; else writes nothing.

    The exported network takes ``(B, 3, H, W)`` float32 in [0, 1], with any B and the H and W of ``images``, and returns
    logits ``(B, 1, H, W)``, or ``(B, K + 1, H, W)`` for K classes, the background first. It is read back from the disk
    and compared with the network, for all images at once and for a single one. It does not check its input.

    Args:
        network: network to export; it is put into eval mode and moved to the CPU.
        to: a name in :data:`FORMATS`; with ``exporter``, its name.
        output: a new file, or a new folder for a bundle.
        images: (B, 3, H, W) float32 in [0, 1], B >= 2, for comparison and timing.
        int8: for ONNX, whether to write matrix products as 8-bit integers.
        bundle: for format ``bundle``, folder of the network's bundle, whose metadata are copied.
        shipped: whether the network is the one that ``bundle`` ships; scores, data, authors and licence are copied only
            then.
        threshold: lowest probability of foreground, for one class.
        classes: names of several classes, in the order of their logits; empty for one.
        quality: quality of the network. It is written with the classes and
            :func:`~samfed_monai.core.model_file.usage_of`, except in formats of other packages.
        exporter: an exporter of another package.

    Returns:
        Measurements of the network in float32, of the exported one (for int8 also of the same in float32), and, if
        :func:`~samfed_monai.networks.inferer.bf16_gains`, of the network under bfloat16 autocast.

    Raises:
        Refused: ``output`` exists; a package is missing; the network does not take the images' size; the format does
            not support the network; its predictions differ.
        ValueError: an unknown format, or format ``bundle`` without ``bundle``.
    """
    if exporter is None and to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, found {to!r}")
    if to == "bundle" and bundle is None:
        raise ValueError("export_network: a bundle copies the metadata of another bundle: pass bundle=FOLDER")
    output, (height, width) = Path(output), images.shape[-2:]
    require(export_problems(to, output, int8=int8), size_problems(network, height=height, width=width))
    network = network.eval().cpu()
    properties: dict[str, Any] = {USAGE: usage_of(images.shape[-1], classes, threshold)}
    properties |= {QUALITY: quality.as_dict()} if quality is not None and quality != Quality() else {}
    texts = {key: each if isinstance(each, str) else json.dumps(each) for key, each in properties.items()}
    texts |= {CLASSES: json.dumps(list(classes))} if classes else {}
    with torch.no_grad():
        logits = network(images)
    size = sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6
    samples = images, logits, threshold
    rows = [_measure("torch, float32", size, network, *samples)]
    with temporary_folder(output) as folder:
        write: Exporter = exporter or (lambda network, path, images: FORMATS[to][1](network, path, images, texts))
        file_name = output.name if exporter else f"model{output.suffix}"
        written, option = folder / file_name, f"--to {to}"
        rows.append(_write_and_measure(f"{to}, float32", option, write, network, written, samples))
        limit = SAME_LOGITS * max(1.0, float(logits.abs().max()))
        if not rows[1].difference <= limit:  # so that NaN is refused
            found, hint = f"logits that differ by {rows[1].difference:.2g}", "try another format; nothing was written"
            raise refused(option, found, f"at most {limit:.2g}", hint)
        if int8:
            float32_file, written = written, written.with_name("int8.onnx")
            write_int8 = partial(_to_int8, about=texts, float32_file=float32_file)
            rows.insert(1, _write_and_measure("onnx, int8", "--int8", write_int8, network, written, samples))
            if rows[1].dice < SAME_MASKS:
                found, hint = f"a Dice of {rows[1].dice:.4f} to masks in float32", "leave it out; nothing was written"
                raise refused("--int8", found, f"at least {SAME_MASKS}", hint)
        if bf16_gains("cpu"):
            run = partial(AutocastInferer(True), network=network)
            rows.append(_measure("torch, bfloat16", size, run, *samples))
        if to == "bundle" and bundle is not None:
            settings = bundle, images.shape[-1], classes, threshold
            written = _bundle(folder / "bundle", written, *settings, shipped=shipped, about=properties)
        os.rename(written, output)
    return rows


def export_problems(to: str, output: Path, *, int8: bool = False) -> Iterator[Problem]:
    """Yields problems of an export before any network is built: output, missing packages, conflicting options."""
    yield from absent("--output", output)
    if to in FORMATS and to != "bundle" and output.suffix != FORMATS[to][0]:  # by which files are recognised
        yield Problem("--output", output.name, f"a name that ends in {FORMATS[to][0]}")
    if int8 and to != "onnx":
        yield Problem("--int8", f"--to {to}", "--to onnx: only ONNX Runtime has a quantiser")
    for package in PACKAGES if to == "onnx" else ():
        yield from installed(package, "export", "--to onnx", f"no package {package}", ", ".join(PACKAGES))


def table_of(rows: Sequence[Measured]) -> str:
    """Returns a plain-text table with a row for each form of the network."""
    lines = [("form", "MB", "images/s", "logits differ by", "mask pixels differ", "Dice to float32")]
    for row in rows:
        cost = f"{row.megabytes:.3g}", f"{row.images_per_second:.1f}"
        lines.append((row.name, *cost, f"{row.difference:.1e}", f"{100 * row.pixels:.3f} %", f"{row.dice:.4f}"))
    return aligned(lines)


def _write_and_measure(
    name: str, option: str, write: Any, network: nn.Module, path: Path, samples: tuple[Tensor, Tensor, float]
) -> Measured:
    """Writes a file and measures it.

    Args:
        name: name of the row.
        option: the option that requests it, for messages.
        write: exporter of this or of another package.
        samples: images, the network's logits for them, and the threshold of masks.
    """
    try:
        with muted(), without_warnings(), torch.no_grad():
            run = write(network, path, samples[0][:2])
            if not (path.exists() and callable(run)):
                found = "no file at its path" if not path.exists() else type(run).__name__
                raise refused(option, found, "an exporter that writes the file and returns a function that runs it")
            return _measure(name, path.stat().st_size / 1e6, run, *samples)
    except Refused:
        raise
    except Exception as error:  # from another library's exporter, quantiser or runtime
        if machine_failure(error) is not None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found, hint = f"{type(network).__name__} ({lines[-1][:_MAX_ERROR]})", "try another format; nothing was written"
        problem = Problem(option, found=found, expected="a network that this format supports", hint=hint)
        raise Refused([problem]) from error


@torch.no_grad()
def _measure(name: str, megabytes: float, run: Run, images: Tensor, logits: Tensor, threshold: float) -> Measured:
    found, single = run(images), run(images[:1])
    ours, theirs = (x.argmax(1) if x.shape[1] > 1 else (x[:, 0].sigmoid() >= threshold).long() for x in (logits, found))
    total = int((ours > 0).sum() + (theirs > 0).sum())
    return Measured(
        name,
        megabytes=megabytes,
        images_per_second=len(images) / min(timeit.repeat(lambda: run(images), number=1, repeat=3)),
        difference=float(max((found - logits).abs().max(), (single - logits[:1]).abs().max())),
        pixels=float((ours != theirs).float().mean()),
        dice=2 * int(((ours == theirs) & (ours > 0)).sum()) / total if total else 1.0,
    )


_BUNDLE_PACKAGES = ("pytorch-ignite", "pillow", "scipy", "tqdm")
_UNKNOWN = "to be filled in by the authors of the network"


def _bundle(
    folder: Path,
    program: Path,
    source: Path,
    size: int,
    classes: Sequence[str],
    threshold: float,
    *,
    shipped: bool,
    about: Mapping[str, Any],
) -> Path:
    """Writes a bundle for ``python -m monai.bundle run``: program, configuration, metadata, README, licences."""
    config = read_json(_TEMPLATES / "exported_inference.json") | {"image_size": size, "threshold": threshold}
    if classes:  # masks are the argmax of the logits
        config |= read_json(_TEMPLATES / "exported_classes.json")
        del config["threshold"]
    write_json(folder / "configs" / "inference.json", config, mode=PUBLIC)
    source_metadata = read_json(source / "configs" / "metadata.json")
    metadata = exported_metadata(source_metadata, size, shipped=shipped, classes=classes) | dict(about)
    write_json(folder / "configs" / "metadata.json", metadata, mode=PUBLIC)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(("background", *classes)))
    masks = {"masks": names, "channels": len(classes) + 1} if classes else {"masks": "0 and 255", "channels": 1}
    readme = (_TEMPLATES / "exported_readme.md").read_text().format(name=metadata["name"], size=size, **masks)
    write_text(folder / "docs" / "README.md", readme, mode=PUBLIC)
    (folder / "models").mkdir()
    os.rename(program, folder / "models" / "model.ts")
    for name in ("LICENSE", "docs/data_license.txt"):
        if shipped and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return folder


def exported_metadata(
    metadata: Mapping[str, Any], size: int, *, shipped: bool, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the metadata of an exported bundle.

    Args:
        metadata: content of ``metadata.json`` of the network's bundle.
        size: side of the network's input, in pixels.
        shipped: see :func:`export_network`.
        classes: names of several classes; empty for one.
    """
    content: dict[str, Any] = deepcopy(dict(metadata))
    packages = content.get("required_packages_version", {})
    content["required_packages_version"] = {name: packages[name] for name in _BUNDLE_PACKAGES if name in packages}
    formats = content["network_data_format"]
    for tensor in (formats["inputs"]["image"], formats["outputs"]["pred"]):
        tensor["spatial_shape"] = [size, size]
    if classes:
        names = ("background", *classes)
        channels = {str(number): name for number, name in enumerate(names)}
        formats["outputs"]["pred"] |= {"num_channels": len(names), "channel_def": channels}
        content["pred_classes"] = f"{len(names)} logits; the largest is the pixel's class: {', '.join(names)}"
    if not shipped:
        content |= {"eval_metrics": {}, "data_source": _UNKNOWN, "authors": _UNKNOWN, "copyright": _UNKNOWN}
    return content
