"""What a network says of the public images, as it would travel: 8-bit soft masks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from monai.data import DataLoader
from monai.inferers import SimpleInferer
from monai.networks.utils import eval_mode

from samfed_monai.data.resizing import resize_probabilities
from samfed_monai.errors import Problem, Problems, Refused
from samfed_monai.losses import Reliability, image_reliability, probabilities

if TYPE_CHECKING:
    from monai.inferers import Inferer
    from torch import Tensor, nn
    from torch.utils.data import Dataset


class PublicPredictor:
    """Runs networks over the unaugmented public set; the only place where soft masks on ``D_p`` are made.

    Server and site use the same code, so that a network gives the same bytes on both, whichever of the two runs it.

    Args:
        dataset: labelled public items without random transforms, all of one size.
        device, inferer: how to run a network; float32 is what the other side can repeat.
        batch_size: images at a time; it must be the same on both sides for equal bits.
        mask_size: side of a mask in pixels; ``None`` is a quarter of the image's, which is the resolution of the
            networks' own logits (DeepLabV3+).
        reliability: ``dice`` or ``pixel_accuracy``.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        device: torch.device | str = "cpu",
        inferer: Inferer | None = None,
        batch_size: int = 8,
        mask_size: int | None = None,
        reliability: str = "dice",
    ) -> None:
        problems = Problems()
        if reliability not in {each.value for each in Reliability}:
            expected = f"one of {[each.value for each in Reliability]}"
            problems.add("sharing#reliability", found=repr(reliability), expected=expected)
        if mask_size is not None and (type(mask_size) is not int or mask_size < 1):
            problems.add("sharing#mask_size", found=repr(mask_size), expected="a number of pixels >= 1, or null")
        problems.refuse_if_any()
        self.dataset, self.device, self.inferer = dataset, torch.device(device), inferer or SimpleInferer()
        self.batch_size, self.mask_size, self.reliability_measure = batch_size, mask_size, reliability
        self._labels: Tensor | None = None
        self._hash = ""

    @property
    def labels(self) -> Tensor:
        """(N, 1, H, W) uint8, read once."""
        if self._labels is None:
            self._read()
        assert self._labels is not None
        return self._labels

    @property
    def public_hash(self) -> str:
        """SHA-256 of ``D_p`` as it is used: image files, labels at the evaluation size, and their order."""
        if not self._hash:
            self._read()
        return self._hash

    @torch.no_grad()
    def masks(self, network: nn.Module) -> Tensor:
        """The network's soft masks of all public images.

        Returns:
            (N, C, h, w) uint8 on the CPU, 255 for a probability of 1; the error of a probability is at most 1/510.

        Raises:
            Refused: the network gives NaN or infinity.
        """
        found = []
        with eval_mode(network):
            for batch in self._batches():
                chances = probabilities(self.inferer(batch["image"].to(self.device), network)).float().cpu()
                if not torch.isfinite(chances).all():
                    expected, mend = "probabilities in [0, 1]", "lower the learning rate; the network has diverged"
                    raise Refused([Problem("soft masks", found="NaN or infinity", expected=expected, mend=mend)])
                chances = resize_probabilities(chances, self._size(chances))
                found.append((chances * 255).round().to(torch.uint8))
        return torch.cat(found)

    @torch.no_grad()
    def like(self, network: nn.Module) -> Tensor:
        """Shape and dtype of :meth:`masks`, from one image and without memory of their own; the values mean nothing."""
        with eval_mode(network):
            image = torch.as_tensor(self.dataset[0]["image"])[None].to(self.device)
            chances = probabilities(self.inferer(image, network))
        images = len(self.dataset)  # type: ignore[arg-type]
        return torch.zeros((), dtype=torch.uint8).expand(images, chances.shape[1], *self._size(chances))

    def reliability(self, masks: Tensor) -> Tensor:
        """(N,) float in [0, 1] of (N, C, h, w) uint8 masks, at the labels' size."""
        size = self.labels.shape[-2:]
        values = []
        for part, labels in zip(masks.split(64), self.labels.split(64), strict=True):
            chances = resize_probabilities(part.float() / 255, size)
            values.append(image_reliability(chances, labels, self.reliability_measure))
        return torch.cat(values)

    def _size(self, chances: Tensor) -> tuple[int, int]:
        height, width = chances.shape[-2:]
        if self.mask_size is None:
            return max(1, height // 4), max(1, width // 4)
        return self.mask_size, self.mask_size

    def _batches(self) -> Any:
        # a loader draws a seed whenever it is iterated; with its own generator nobody else's numbers change
        own = torch.Generator()
        return DataLoader(self.dataset, batch_size=self.batch_size, num_workers=0, generator=own)

    def _read(self) -> None:
        labels, digest = [], hashlib.sha256()
        for batch in self._batches():
            part = (batch["label"] > 0.5).to(torch.uint8) if batch["label"].is_floating_point() else batch["label"]
            labels.append(part.cpu().to(torch.uint8))
            for name, label in zip(batch["image_sha256"], labels[-1], strict=True):
                digest.update(name.encode())
                digest.update(label.contiguous().numpy().data)
        self._labels, self._hash = torch.cat(labels), digest.hexdigest()
