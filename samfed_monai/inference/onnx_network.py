"""An exported ONNX file as a network: images to logits, like the network that it was exported from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samfed_monai.core.errors import Problem, Refused, machine_failure
from samfed_monai.core.io import parse_json
from samfed_monai.data.classes import class_problems, outputs_of, several
from samfed_monai.metrics.quality import Quality
from samfed_monai.metrics.quality_file import QUALITY, quality_of

CLASSES = "classes"
"""Property of an ONNX file that holds the names of several classes, as JSON."""
RUNTIMES = {"onnxruntime": "samfed-monai[export]", "openvino": "samfed-monai[openvino]"}
"""What runs an ONNX file, and what `pip install` takes for it."""
_FIRST_LINE = 200  # characters of the runtime's error


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
            if importlib.util.find_spec(package) is None:
                hint = f"pip install '{RUNTIMES[package]}'"
                problem = Problem(str(path), found="an ONNX file", expected=f"{package} to run it with", hint=hint)
                raise Refused([problem])
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
            raise Refused([Problem(str(path), found=found, expected="an ONNX file")]) from None
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
            hint = "name a file of `samfed export --to onnx`"
            raise Refused([Problem(str(path), found=found, expected=expected, hint=hint)])
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
