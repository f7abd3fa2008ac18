"""Writes what an evaluator predicts as PNG masks of each image's own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from samfed_monai.errors import Problem, Problems
from samfed_monai.io import atomic_write

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor


def probabilities_at(logits: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Probabilities at an image's own size.

    Args:
        logits: (1, h, w) float.
        size: height and width in pixels.

    Returns:
        (H, W) float32 in [0, 1]; the logits are resized bilinearly before the sigmoid, so that 0.5 stays a straight
        contour between the pixels of a small prediction.
    """
    resized = functional.interpolate(logits[None].float(), size=size, mode="bilinear", align_corners=False)
    probabilities: NDArray[np.float32] = torch.sigmoid(resized)[0, 0].cpu().numpy()
    return probabilities


class MaskWriter:
    """Saves ``<output_dir>/<id>.png`` (0 and 255) for every image of a MONAI ``SupervisedEvaluator``.

    The file is made of the prediction alone: no EXIF, GPS or colour profile of the image is copied (fault 60). An
    image that its EXIF turns gets a mask of the turned, upright picture. It does not score anything. An item says in
    ``id`` what it is called and in ``native_size`` how high and wide its image was.

    Args:
        output_dir: folder to write to; names with folders in them make sub-folders.
        probabilities: whether to write ``<id>.probability.png``, too: 8 bit, 255 is certain foreground.
        threshold: probability from which a pixel is foreground.

    Raises:
        Refused: the threshold is not inside (0, 1), or the output folder cannot be written to.

    Example::

        {"_target_": "samfed_monai.handlers.mask_writer.MaskWriter", "output_dir": "@output_dir"}
    """

    def __init__(
        self,
        *,
        output_dir: str | Path,
        probabilities: bool = False,
        threshold: float = 0.5,
    ) -> None:
        problems = Problems()
        if not 0 < threshold < 1:
            problems.add("MaskWriter#threshold", found=repr(threshold), expected="a number in (0, 1)")
        self.output_dir = Path(output_dir).expanduser()
        problems.extend(_unwritable(self.output_dir))
        problems.refuse_if_any()
        self.probabilities, self.threshold = probabilities, threshold

    def attach(self, engine: Engine) -> None:
        """Binds the handler to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for name, size, logits in self._items(engine.state.batch, engine.state.output):
            probabilities = probabilities_at(logits, size)
            self._save(f"{name}.png", np.where(probabilities >= self.threshold, 255, 0))
            if self.probabilities:
                self._save(f"{name}.probability.png", np.rint(probabilities * 255))

    def _items(self, batch: Any, output: Any) -> Iterator[tuple[str, tuple[int, int], Tensor]]:
        """Name, own size and logits of every image, whether the evaluator decollates or not."""
        if isinstance(output, Mapping):
            heights, widths = (torch.as_tensor(side).reshape(-1).tolist() for side in batch["native_size"])
            names = batch["id"]
            yield from zip(names, zip(heights, widths, strict=True), output["pred"], strict=True)
            return
        for item in output:
            height, width = (int(side) for side in item["native_size"])
            yield item["id"], (height, width), item["pred"]

    def _save(self, name: str, pixels: NDArray[Any]) -> None:
        with atomic_write(self.output_dir / name) as stream:
            Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG")


def _unwritable(folder: Path) -> list[Problem]:
    try:
        with atomic_write(folder / ".writable"):
            pass
        (folder / ".writable").unlink()
    except OSError as error:
        return [Problem(str(folder), found=str(error), expected="a folder that can be written to")]
    return []
