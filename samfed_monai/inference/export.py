"""A trained network in formats that run without this package, compared with the network that it was made of.

An ONNX file is read back here, too: as a network like the one that it was exported from.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import shutil
import tempfile
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Problems, Refused, machine_failure, refused
from samfed_monai.core.io import PUBLIC, absent, parse_json, read_json, require_writable, write_json, write_text
from samfed_monai.core.model_file import USAGE, usage_of
from samfed_monai.core.validators import installed, require
from samfed_monai.core.words import aligned
from samfed_monai.data.classes import class_problems, outputs_of, several
from samfed_monai.metrics.quality import Quality
from samfed_monai.metrics.quality_file import QUALITY, quality_of
from samfed_monai.networks.inferer import AutocastInferer, bf16_gains
from samfed_monai.networks.input_size import size_problems

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What ONNX needs beside torch: the extra ``export``."""
CLASSES = "classes"
"""Property of an ONNX file that holds the names of several classes, as JSON."""
RUNTIMES = {"onnxruntime": "export", "openvino": "openvino"}
"""What runs an ONNX file, and the extra that installs it."""
SAME_LOGITS = 1e-3
"""Largest difference of logits, as a share of the largest logit where that is above 1. Float32 sums in another order
differ by about 1e-5; a network that was exported wrongly differs by whole logits."""
SAME_MASKS = 0.995
"""Least Dice of masks in int8 to those of float32, over all images together."""

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_BATCH = 4096  # torch.export needs an upper bound; this one is above any batch
_FIRST_LINE = 200  # characters of another library's error

Run = Callable[[Tensor], Tensor]

Exporter = Callable[[nn.Module, Path, Tensor], Run]
"""Of another package (entry points ``samfed_monai.exporters``): writes a network to a path, with some images
``(B, 3, H, W)`` to trace with, and returns how to run what is there: images to logits."""


class OnnxNetwork(nn.Module):
    """Runs an ONNX file by ONNX Runtime or OpenVINO, on the CPU, with as many threads as torch has when it is built.

    It has no parameters, is not trained, and does not check the numbers that it is given. ONNX Runtime computes in the
    file's own numbers; OpenVINO in bfloat16 where the processor does, and one image at a time, which is its fastest.

    Args:
        path: a file that ``samfed export --to onnx`` wrote, in float32 or int8, or one of that kind: one input ``(B, 3,
            H, W)`` float32 in [0, 1], one output of logits: ``(B, 1, H, W)``, or ``(B, K + 1, H, W)`` of K classes,
            whose names the file holds.
        runtime: ``"onnxruntime"`` or ``"openvino"``; the first reads the file's names and shapes in both cases.

    Attributes:
        size: height and width that the file takes, in pixels.
        classes: names of several classes; empty for one.
        quality: what is known of how far its masks are to be trusted; nothing where the file has no such property.

    Raises:
        Refused: what runs it is not installed; no such file, or none that it reads; a network of another kind; a
            property that holds no quality.
        ValueError: an unknown runtime.
    """

    def __init__(self, path: str | Path, runtime: str = "onnxruntime") -> None:
        super().__init__()
        path = Path(path)
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
        for package in dict.fromkeys(("onnxruntime", runtime)):
            require(installed(package, RUNTIMES[package], str(path), "an ONNX file", f"{package} to run it with"))
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own kinds, which are no public names
            if machine_failure(error) is not None:
                raise
            found = next(iter(str(error).strip().splitlines()), type(error).__name__)[:_FIRST_LINE]
            raise refused(path, found=found, expected="an ONNX file") from None
        properties = self._session.get_modelmeta().custom_metadata_map
        self.classes = _names_in(properties.get(CLASSES, "[]"))
        self.quality = Quality()
        if text := properties.get(QUALITY):
            self.quality = quality_of(text, f"{path} -> {QUALITY}", "export the network anew: samfed export --to onnx")
        self.size = self._checked(path)
        self._run = self._by_openvino(path) if runtime == "openvino" else self._by_onnxruntime

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) float32 of images (B, 3, H, W) float32 in [0, 1], with H and W as in ``size``."""
        numbers = images.detach().as_subclass(Tensor).cpu().numpy()
        return torch.from_numpy(self._run(numbers)).to(images.device)

    def _by_onnxruntime(self, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(None, {self._input: numbers})[0])

    def _by_openvino(self, path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """What runs the file by OpenVINO, compiled for one image at a time."""
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        model.reshape([1, 3, *self.size])
        hints = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
        compiled = core.compile_model(model, "CPU", hints)
        # the next image is computed into the same memory
        return lambda numbers: np.concatenate([compiled(image[None])[0].copy() for image in numbers])

    def _checked(self, path: Path) -> tuple[int, int]:
        given, made = self._session.get_inputs(), self._session.get_outputs()
        self._input = given[0].name
        shape: list[Any] = list(given[0].shape)
        sides = shape[2:]
        whole = len(shape) == 4 and shape[1] == 3 and all(isinstance(side, int) for side in sides)
        single = len(given) == 1 and len(made) == 1 and given[0].type == "tensor(float)"
        if not (whole and single and len(made[0].shape) == 4 and made[0].shape[1] == outputs_of(self.classes)):
            found = f"{_described(given)} -> {_described(made)}"
            named = f", for {', '.join(self.classes)}" if self.classes else ""
            expected = f"float32 (B, 3, H, W) -> (B, {outputs_of(self.classes)}, H, W){named}"
            raise refused(path, found=found, expected=expected, hint="name a file of `samfed export --to onnx`")
        return int(sides[0]), int(sides[1])


def _names_in(text: str) -> list[str]:
    """Names of several classes, as the file has them; none of a file with something else in their place."""
    try:
        names = parse_json(text)
    except ValueError:
        return []
    return names if not class_problems(names, CLASSES) and several(names) else []


def _described(values: Any) -> str:
    return ", ".join(f"{value.type} {tuple(value.shape)}" for value in values)


class Measured(NamedTuple):
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


def _to_torchscript(network: nn.Module, path: Path, images: Tensor, about: dict[str, str]) -> Run:
    buffer = io.BytesIO()  # on a full disk torch's own writer ends the process, and leaves half a file
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
    return _with_texts(path, about)


def _to_int8(network: nn.Module, path: Path, images: Tensor, about: dict[str, str], *, whole: Path) -> Run:
    """Matrix products of the ONNX file ``whole`` in 8 bits, by ONNX Runtime's own quantiser; convolutions, which scaled
    image by image are far less exact and no faster, stay in float32."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_name("ready.onnx")
    quant_pre_process(str(whole), str(ready), skip_symbolic_shape=True)
    options: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QInt8}
    quantize_dynamic(str(ready), str(path), per_channel=True, **options)
    if not any(node.op_type == "DynamicQuantizeLinear" for node in onnx.load(path).graph.node):
        raise refused("--int8", "a network without any", "matrix products to convert", "leave it out")
    return _with_texts(path, about)


def _with_texts(path: Path, about: dict[str, str]) -> Run:
    """The network of an ONNX file, once that has texts about it, among which are classes and quality."""
    import onnx

    content = onnx.load(path)
    onnx.helper.set_model_props(content, about)
    onnx.save(content, path)
    return OnnxNetwork(path)


def _program(network: nn.Module, images: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1, max=_LONGEST_BATCH)
    return torch.export.export(network, (images,), dynamic_shapes=({0: batch},))


FORMATS: Mapping[str, tuple[str, Callable[[nn.Module, Path, Tensor, dict[str, str]], Run]]] = {
    "torchscript": (".ts", _to_torchscript),
    "pt2": (".pt2", _to_pt2),
    "onnx": (".onnx", _to_onnx),
    "bundle": ("_bundle", _to_torchscript),
}
"""What a network can be exported to, a traced program for ``torch.jit.load`` and LibTorch, a program of
``torch.export``, ONNX, and a MONAI inference bundle around a traced program, which plain MONAI runs: what the name of
the file or folder ends in, and what writes a network, with texts about it, and returns how to run what was written."""


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
    """Writes a network in another format, if that predicts the same; nothing is written otherwise.

    What is written takes ``(B, 3, H, W)`` float32 in [0, 1], any B and the H and W of ``images``, and gives logits
    ``(B, 1, H, W)``, of K classes ``(B, K + 1, H, W)`` with the background first. It is read back from the disk and
    compared with the network, for all images at once and for one alone. It does not check the images that it is given.

    Args:
        network: to export; it is put into eval mode and moved to the CPU.
        to: a name in :data:`FORMATS`; with ``exporter``, its name.
        output: a new file, or a new folder for a bundle.
        images: (B, 3, H, W) float32 in [0, 1], B >= 2: what is compared and timed.
        int8: of ONNX, whether to write matrix products in integers of 8 bits.
        bundle: of a bundle: folder of the one that the network belongs to, whose metadata are taken over.
        shipped: whether the network is the one that ``bundle`` ships; its scores, data, authors and licence are not
            those of another network.
        threshold: probability from which a pixel is foreground, of one class.
        classes: names of several classes, in the order of their logits; empty for one.
        quality: what is known of how far the network's masks are to be trusted. What is written holds it, the classes
            and :func:`~samfed_monai.core.model_file.usage_of`, but for the format of another package.
        exporter: of another package, what writes the format.

    Returns:
        the network in float32, then what was written, then, of one in int8, the same in float32, then the network under
        bfloat16 autocast, where :func:`~samfed_monai.networks.inferer.bf16_gains`.

    Raises:
        Refused: ``output`` exists; a package is missing; the images' size is none of the network's; the format cannot
            take the network; what was made of it predicts something else.
        ValueError: an unknown format; a bundle without ``bundle``.
    """
    if exporter is None and to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, found {to!r}")
    if to == "bundle" and bundle is None:
        raise ValueError("export_network: a bundle takes metadata over from another one: bundle=FOLDER")
    output, (height, width) = Path(output), images.shape[-2:]
    require(export_problems(to, output, int8=int8), size_problems(network, height=height, width=width))
    network = network.eval().cpu()
    known: dict[str, Any] = {USAGE: usage_of(images.shape[-1], classes, threshold)}
    known |= {QUALITY: quality.as_dict()} if quality is not None and quality != Quality() else {}
    about = {key: each if isinstance(each, str) else json.dumps(each) for key, each in known.items()}
    about |= {CLASSES: json.dumps(list(classes))} if classes else {}
    with torch.no_grad():
        logits = network(images)
    size = sum(tensor.nbytes for tensor in network.state_dict().values()) / 1e6
    rows = [_compared("torch, float32", size, network, images, logits)]
    require_writable(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export.", ignore_cleanup_errors=True) as folder:
        write: Exporter = exporter or (lambda network, path, images: FORMATS[to][1](network, path, images, about))
        ours = "model.pt2" if to == "pt2" else "model"  # torch.export reads that ending alone
        written, option = Path(folder) / (output.name if exporter else ours), f"--to {to}"
        rows.append(_written(f"{to}, float32", option, write, network, written, images, logits))
        most = SAME_LOGITS * max(1.0, float(logits.abs().max()))
        if not rows[1].difference <= most:  # nan is refused, too
            found, hint = f"logits that differ by {rows[1].difference:.2g}", "try another format; nothing was written"
            raise refused(option, found, f"at most {most:.2g}", hint)
        if int8:
            whole, written = written, written.with_name("int8.onnx")
            small = partial(_to_int8, about=about, whole=whole)
            rows.insert(1, _written("onnx, int8", "--int8", small, network, written, images, logits))
            if rows[1].dice < SAME_MASKS:
                found, hint = f"a Dice of {rows[1].dice:.4f} to masks in float32", "leave it out; nothing was written"
                raise refused("--int8", found, f"at least {SAME_MASKS}", hint)
        if bf16_gains("cpu"):
            run = partial(AutocastInferer(True), network=network)
            rows.append(_compared("torch, bfloat16", size, run, images, logits))
        if to == "bundle" and bundle is not None:
            given = bundle, images.shape[-1], classes, threshold
            written = _bundle(Path(folder) / "bundle", written, *given, shipped=shipped, about=known)
        os.rename(written, output)
    return rows


def export_problems(to: str, output: Path, *, int8: bool = False) -> list[Problem]:
    """What is wrong with an export before any network is built: the place, the packages, what does not go together."""
    problems = Problems()
    problems.extend(absent("--output", output))
    if int8 and to != "onnx":
        problems.add("--int8", found=f"--to {to}", expected="--to onnx, whose runtime has the quantiser")
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if to == "onnx" and missing:
        hint = "pip install 'samfed-monai[export]', or in a clone: pip install -c constraints.txt -e '.[export]'"
        problems.add("--to onnx", found=f"no package {', '.join(missing)}", expected=", ".join(PACKAGES), hint=hint)
    return list(problems)


def table_of(rows: Sequence[Measured]) -> str:
    """A table in plain text: a row for each form of the network."""
    lines = [("form", "MB", "images/s", "logits differ by", "mask pixels differ", "Dice to float32")]
    for row in rows:
        cost = f"{row.megabytes:.3g}", f"{row.images_per_second:.1f}"
        lines.append((row.name, *cost, f"{row.difference:.1e}", f"{100 * row.pixels:.3f} %", f"{row.dice:.4f}"))
    return aligned(lines)


def _written(
    name: str, option: str, write: Any, network: nn.Module, path: Path, images: Tensor, logits: Tensor
) -> Measured:
    """Writes a file and measures it.

    Args:
        name: of the row.
        option: what asked for it, for messages.
        write: ours, or another package's.
    """
    try:
        with _quiet(), torch.no_grad():
            run = write(network, path, images[:2])
            if not (path.exists() and callable(run)):
                found = "nothing at its path" if not path.exists() else type(run).__name__
                raise refused(option, found, "an exporter that writes to its path and returns how to run that")
            return _compared(name, path.stat().st_size / 1e6, run, images, logits)
    except Refused:
        raise
    except Exception as error:  # of another library's exporter, quantiser or runtime
        if machine_failure(error) is not None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        found, hint = f"{type(network).__name__} ({lines[-1][:_FIRST_LINE]})", "try another format; nothing was written"
        problem = Problem(option, found=found, expected="a network that this format can take", hint=hint)
        raise Refused([problem]) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the records and warnings of the exporters and the quantiser."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def _compared(name: str, megabytes: float, run: Run, images: Tensor, logits: Tensor) -> Measured:
    found, alone = run(images), run(images[:1])
    ours, theirs = (each.argmax(1) if each.shape[1] > 1 else (each[:, 0] > 0).long() for each in (logits, found))
    both = int((ours > 0).sum() + (theirs > 0).sum())
    return Measured(
        name,
        megabytes=megabytes,
        images_per_second=len(images) / min(timeit.repeat(lambda: run(images), number=1, repeat=3)),
        difference=float(max((found - logits).abs().max(), (alone - logits[:1]).abs().max())),
        pixels=float((ours != theirs).float().mean()),
        dice=2 * int(((ours == theirs) & (ours > 0)).sum()) / both if both else 1.0,
    )


_PACKAGES_OF_A_BUNDLE = ("pytorch-ignite", "pillow", "scipy", "tqdm")
_UNKNOWN = "to be filled in by whoever trained the network"


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
    """A folder that ``python -m monai.bundle run`` takes: the program, how it is run, what it is, its terms."""
    config = read_json(_TEMPLATES / "exported_inference.json") | {"image_size": size, "threshold": threshold}
    if classes:  # a mask has the value of the largest logit
        config |= read_json(_TEMPLATES / "exported_classes.json")
        del config["threshold"]
    write_json(folder / "configs" / "inference.json", config, mode=PUBLIC)
    given = read_json(source / "configs" / "metadata.json")
    metadata = exported_metadata(given, size, shipped=shipped, classes=classes) | dict(about)
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
    """Metadata of an exported bundle.

    Args:
        metadata: content of ``metadata.json`` of the bundle that its network belongs to.
        size: of the images at the network, in pixels.
        shipped: see :func:`export_network`.
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
