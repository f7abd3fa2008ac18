"""What happens to an image between its file and the network: one transform for each place where a bundle needs one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.transforms import AsDiscreted, Compose, Resized, Transform

from samfed_monai.core.errors import Problem, Refused, did_you_mean
from samfed_monai.transforms.loading import LoadRGBd, LoadSoftMaskd, LoadTargetd, PublicTargets

STRONG_KEY = "image_strong"
LABEL_RESIZE = ("area", "nearest")
"""How a label is brought to the network's size: by the share of a pixel that it covers, foreground from a half on, or
by the pixel at the upper left of each, as torch's ``nearest`` does. The latter moves labels by up to half a pixel
against images and soft masks; the committed tables of ``docs/results`` were made with it."""


class EvaluationImages(Compose):
    """Reads an image and its label, if it has one, and brings both to the network's size; nothing random.

    The image is (3, S, S) float32 in [0, 1] (averaged over areas), the label (1, S, S) float32 in {0, 1}. The item
    also receives ``"native_size"``, see :class:`LoadRGBd`.

    Args:
        image_size: S, side in pixels.
        label_resize: how the label gets there, see :data:`LABEL_RESIZE`.

    Raises:
        Refused: another ``label_resize``.

    Example::

        {"_target_": "samfed_monai.transforms.EvaluationImages", "image_size": "@image_size",
         "label_resize": "@label_resize"}
    """

    def __init__(self, *, image_size: int, label_resize: str = "area") -> None:
        super().__init__(_read(image_size, label_resize, labelled=False))


class LabelledViews(Compose):
    """Reads an image with its label, moves both at random, and disturbs the image: the network sees the strong view.

    Args:
        image_size: side in pixels.
        weak: the weak view, which moves ``image`` and ``label`` together (:class:`WeakViewd`).
        strong: the strong view, which adds ``image_strong`` (:class:`StrongViewd`); here it takes the image's place.

        targets: what another network thinks of the public images, where a bundle has such (:class:`LoadTargetd`).
        label_resize: how the label is brought to that size, see :data:`LABEL_RESIZE`.

    Each of the two views is copied, so that a bundle can hand the same ones to :class:`UnlabelledViews` without the two
    sharing their random numbers.

    Example::

        {"_target_": "samfed_monai.transforms.LabelledViews", "image_size": "@image_size",
         "label_resize": "@label_resize", "weak": "@weak_view", "strong": "@strong_view"}
    """

    def __init__(
        self,
        *,
        image_size: int,
        weak: Callable[[Any], Any],
        strong: Callable[[Any], Any],
        targets: PublicTargets | None = None,
        label_resize: str = "area",
    ) -> None:
        views: list[Callable[[Any], Any]] = [copy.deepcopy(weak), copy.deepcopy(strong), _StrongAlone()]
        if targets is not None:
            views.insert(0, LoadTargetd(targets))
        super().__init__([*_read(image_size, label_resize, labelled=True), *views])


class UnlabelledViews(Compose):
    """Reads an image with the teacher's soft mask, moves both at random, and adds the strong view beside the weak one.

    A label that the item carries (the oracle's) moves along.

    Args:
        image_size: side in pixels.
        weak: the weak view, which moves ``image``, ``teacher`` and ``label`` together (:class:`WeakViewd`); copied.
        strong: the strong view, which adds ``image_strong`` (:class:`StrongViewd`); copied.
        store_dir: the site's soft-mask store; ``None`` reads no masks.
        teacher_sha256: identity of the teacher that filled the store.
        masks_for: what uses the masks; ``None``, which a reference to a disabled guide is, leaves them unread.
        label_resize: how a label is brought to that size, see :data:`LABEL_RESIZE`.

    Raises:
        Refused: a store without a teacher's identity.

    Example::

        {"_target_": "samfed_monai.transforms.UnlabelledViews", "image_size": "@image_size", "weak": "@weak_view",
         "strong": "@strong_view", "store_dir": "@store_dir", "teacher_sha256": "@teacher_sha256",
         "masks_for": "@guides#sam"}
    """

    def __init__(
        self,
        *,
        image_size: int,
        weak: Callable[[Any], Any],
        strong: Callable[[Any], Any],
        store_dir: str | Path | None = None,
        teacher_sha256: str | None = None,
        masks_for: Any = "the guides of the bundle",
        label_resize: str = "area",
    ) -> None:
        read = _read(image_size, label_resize, labelled=False)
        if store_dir is not None and masks_for is not None:
            read.append(LoadSoftMaskd(store_dir, teacher_sha256))
        super().__init__([*read, copy.deepcopy(weak), copy.deepcopy(strong)])


class _StrongAlone(Transform):
    """Puts the strong view in the place of the weak one."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        result["image"] = result.pop(STRONG_KEY, result["image"])
        return result


def _read(image_size: int, label_resize: str, *, labelled: bool) -> list[Callable[[Any], Any]]:
    if label_resize not in LABEL_RESIZE:
        expected, mend = f"one of {list(LABEL_RESIZE)}", did_you_mean(str(label_resize), LABEL_RESIZE)
        raise Refused([Problem("train.json -> label_resize", found=repr(label_resize), expected=expected, mend=mend)])
    size, keys, modes = [image_size, image_size], ["image", "label"], ["area", label_resize]
    resized = Resized(keys, size, mode=modes, allow_missing_keys=not labelled)
    return [LoadRGBd(), resized, AsDiscreted("label", threshold=0.5, allow_missing_keys=not labelled)]
