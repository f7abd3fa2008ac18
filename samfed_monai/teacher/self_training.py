"""Self-training of a site's own teacher: the server's, trained further on its own masks of the site's images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.transforms import Compose
from torch import Tensor
from torch.nn import functional as F

from samfed_monai.core.errors import Problems
from samfed_monai.core.validators import whole
from samfed_monai.networks.autocast import Switch
from samfed_monai.networks.sam.adapter import adapted_tensors
from samfed_monai.networks.sam.build import PromptFreeSam
from samfed_monai.teacher.exam import Records, read_image_tensor
from samfed_monai.teacher.training import Batch, ImageBatches, TrainedSam, Training
from samfed_monai.teacher.views import ViewedImages, content_of, without_views
from samfed_monai.transforms import LoadRGBd


class Masks(Protocol):
    """What :func:`confident` needs of a ``samfed_monai.data.SoftMaskStore``."""

    def get(self, image_sha256: str) -> Tensor: ...


@dataclass(frozen=True)
class SelfTraining:
    """How a site's copy of the teacher learns from the site's unlabelled images before round 0; nothing is sent.

    Pseudo-labels (Lee 2013) of the most confident images (Zou et al. 2018, section 4), one public labelled image in
    every batch, the augmentation of the teacher's fit, and its loss and optimizer as the packaged bundles have them.
    Ours, no part of the published method.

    Args:
        epochs: passes over the site's images; 0 does without.
        generations: how often that is done, each time with the masks of the teacher that came out the time before
            (Xie et al. 2020, noisy student).
        learning_rate: peak; the schedule is that of the teacher's fit.
        keep: part of the site's images that is learned from, the most confident first; in (0, 1]. An image on which
            the teacher finds nothing is never among them.
        batch_size: images a step, at least 2; one of them is public.
        seed: decides everything random.
        transform: what happens to an image until SAM sees it, as in the teacher's fit; pseudo-labels take the place of
            labels. ``None`` only reads, scales, normalises and pads.
        bf16: bfloat16 for the encoder, ``"auto"`` where the processor gains.
        progress: show a bar with the time left.

    Raises:
        Refused: everything that is out of its range, at once.
    """

    epochs: int = 0
    generations: int = 1
    learning_rate: float = 2e-4
    keep: float = 0.8
    batch_size: int = 4
    seed: int = 0
    transform: Compose | None = None
    bf16: Switch = "auto"
    progress: bool = True

    def __post_init__(self) -> None:
        problems, where = Problems(), "teacher -> self_training -> "
        for name, least in {"epochs": 0, "generations": 1, "batch_size": 2}.items():
            problems.extend(whole(where + name, getattr(self, name), least=least))
        for name, most in {"learning_rate": 1.0, "keep": 1.0}.items():
            number = getattr(self, name)
            if not isinstance(number, (int, float)) or not 0 < number <= most:
                problems.add(where + name, found=repr(number), expected=f"a number > 0, at most {most:g}")
        problems.refuse_if_any()

    def content(self) -> dict[str, Any]:
        """What decides the outcome, as JSON content."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("bf16", "progress", "transform"):
            del plain[name]
        return plain | {"views": content_of(self.transform)}

    def steps(self, size: int) -> Compose:
        """The transform for an input of ``size`` pixels."""
        return without_views(size) if self.transform is None else self.transform


def confident(records: Records, masks: Masks, keep: float) -> list[dict[str, Any]]:
    """The records whose masks the teacher is surest of: highest mean probability over the foreground.

    Args:
        records: dicts with ``image_sha256``.
        masks: their soft masks.
        keep: at most this part of all records; those without foreground are left out.
    """
    sure: list[tuple[float, dict[str, Any]]] = []
    for record in records:
        mask = masks.get(record["image_sha256"])
        found = mask[mask > 0.5]
        if found.numel():
            sure.append((float(found.mean()), record))
    sure.sort(key=lambda pair: (-pair[0], pair[1]["image_sha256"]))
    return [record for _, record in sure[: max(1, int(round(keep * len(records), 9)))]]


class PseudoLabelled(Sequence[dict[str, Tensor]]):
    """Images with the teacher's mask for a label, read when they are asked for: a site may have thousands.

    Each is ``image``, ``(3, H, W)`` float in [0, 1], and ``label``, ``(1, H, W)`` float in {0, 1}.
    """

    def __init__(self, records: Records, masks: Masks) -> None:
        self.records, self.masks = records, masks

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[index]
        image = read_image_tensor(record)
        soft = self.masks.get(record["image_sha256"])[None]
        mask = F.interpolate(soft, image.shape[-2:], mode="bilinear", align_corners=False) > 0.5
        return {"image": image[0].float() / 255, "label": mask[0].float()}


class MixedBatches(ImageBatches):
    """Batches of a site's images with public ones among them; an epoch is one pass over the site's.

    Args:
        images: the site's.
        public: batches of public ones, drawn without end.
    """

    def __init__(self, images: ViewedImages, public: ImageBatches, *, batch_size: int, seed: int) -> None:
        super().__init__(images, batch_size=batch_size, seed=seed)
        self.public = public

    def of(self, part: Any) -> Iterator[Batch]:
        """The batches of an epoch."""
        public = (batch for turn in count() for batch in self.public.of(f"{part}.{turn}"))
        for own, other in zip(super().of(part), public, strict=False):
            yield {name: torch.cat([own[name], other[name]]) for name in own}


def self_train(
    sam: PromptFreeSam,
    recipe: SelfTraining,
    own: Sequence[dict[str, Tensor]],
    public: Records,
    *,
    size: int,
    progress_file: Path,
    fit_hash: str,
) -> PromptFreeSam:
    """A trained copy of ``sam``, in which only the adapter has changed.

    Args:
        sam: the adapted SAM; it stays as it is, and the copy is trained where it is.
        recipe: how.
        own: the site's images with their pseudo-labels, at least one.
        public: labelled public records, at least one.
        size: side of SAM's input in pixels.
        progress_file: where progress is kept after every epoch; removing it is the caller's business.
        fit_hash: what the progress belongs to.
    """
    sam = copy.deepcopy(sam)
    sam.requires_grad_(False)
    adapted = adapted_tensors(sam)
    parameters = [parameter for name, parameter in sam.named_parameters() if name in adapted]
    for parameter in parameters:
        parameter.requires_grad_(True)
    transform = recipe.steps(size).flatten()
    read = Compose([step for step in transform.transforms if not isinstance(step, LoadRGBd)])  # these are read already
    public_images = ViewedImages(public, transform, seed=recipe.seed)
    batches = MixedBatches(
        ViewedImages(own, read, seed=recipe.seed, keep=False),
        ImageBatches(public_images, batch_size=1, seed=recipe.seed),
        batch_size=recipe.batch_size - 1,
        seed=recipe.seed,
    )
    Training(
        TrainedSam(sam, recipe.bf16),
        [(parameters, recipe.learning_rate)],
        batches,
        None,
        epochs=recipe.epochs,
        progress_file=progress_file,
        fit_hash=fit_hash,
        progress=recipe.progress,
        title="own teacher",
    ).run()
    return sam.requires_grad_(False)
