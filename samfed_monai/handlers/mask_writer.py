"""Writes what an evaluator predicts as PNG masks of each image's own size."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from samfed_monai.data.image_folder import image_names
from samfed_monai.errors import Problems
from samfed_monai.handlers.mask_folder import MaskFolder
from samfed_monai.io import sha256_file

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch import Tensor

logger = logging.getLogger(__name__)


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

    A file that is there is never replaced, see :class:`MaskFolder`: the same inference may be run again into the same
    folder, another one is refused.

    Args:
        output_dir: folder to write to; names with folders in them make sub-folders.
        probabilities: whether to write ``<id>.probability.png``, too: 8 bit, 255 is certain foreground.
        threshold: probability from which a pixel is foreground.
        images: folder of the images; no mask is written into it, and files that have the names of its masks are found
            before anything is computed.
        model: weights file that the masks are made with; its hash is noted beside them, with size and threshold.
        model_sha256: identity of what makes the masks, for that note, where no single file is.
        image_size: pixels of a prediction's side, likewise.

    Raises:
        Refused: the threshold is not inside (0, 1); the output folder cannot be written to, lies in the folder of
            images, or has files of these names that this inference did not write. When it is built, as far as
            ``images`` and ``model`` are given, else with the first such mask.

    Example::

        {"_target_": "samfed_monai.handlers.mask_writer.MaskWriter", "output_dir": "@output_dir"}
    """

    def __init__(
        self,
        *,
        output_dir: str | Path,
        probabilities: bool = False,
        threshold: float = 0.5,
        images: str | Path | None = None,
        model: str | Path | None = None,
        model_sha256: str | None = None,
        image_size: int | None = None,
    ) -> None:
        problems = Problems()
        if not 0 < threshold < 1:
            problems.add("MaskWriter#threshold", found=repr(threshold), expected="a number in (0, 1)")
        self.probabilities, self.threshold = probabilities, threshold
        made_with: dict[str, Any] = {"image_size": image_size, "threshold": threshold}
        made_by = sha256_file(model) if model else model_sha256
        self.masks = MaskFolder(output_dir, {"model_sha256": made_by, **made_with} if made_by else None)
        names = [file for name in image_names(images) for file in self._files(name)] if images else []
        problems.extend(self.masks.problems(names, images=images))
        problems.refuse_if_any()
        self._written = 0

    def attach(self, engine: Engine) -> None:
        """Binds the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def __call__(self, engine: Engine) -> None:
        for name, size, logits in self._items(engine.state.batch, engine.state.output):
            probabilities = probabilities_at(logits, size)
            mask, *map_of_probabilities = self._files(name)
            self.masks.write(mask, _png(np.where(probabilities >= self.threshold, 255, 0)))
            for file in map_of_probabilities:
                self.masks.write(file, _png(np.rint(probabilities * 255)))
            self._written += 1

    def _start(self) -> None:
        self._written = 0

    def _tell(self) -> None:
        logger.info("%d %s in %s", self._written, "mask" if self._written == 1 else "masks", self.masks.folder)

    def _files(self, name: str) -> list[str]:
        return [f"{name}.png", f"{name}.probability.png"][: 2 if self.probabilities else 1]

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


def _png(pixels: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()
