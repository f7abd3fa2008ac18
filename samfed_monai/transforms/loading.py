"""Reading an item's image, label, soft mask and targets from disk into plain tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resized, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import ensure_tuple
from torch import Tensor

from samfed_monai.core.errors import Problem, Refused, did_you_mean
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities


def plain(value: Any) -> Tensor:
    """A float32 tensor without MONAI's metadata (which costs time in every operation and every collate)."""
    tensor = torch.as_tensor(value)
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return tensor.float()


class LoadRGBd(MapTransform):
    """Loads what a record of ``samfed_monai.data.load_records`` points at.

    The image becomes (3, H, W) float32 in [0, 1], the label (1, H, W) float32 in {0, 1}, both upright. The item also
    receives ``"native_size": (H, W)``, to bring a predicted mask back to the image's own size. A label that the item
    does not have is skipped; nothing is resized.

    Args:
        keys: the image's key, then the label's if any; values are paths.

    Raises:
        Refused: at call time, if a file cannot be read or a mask is not binary (``"mask_threshold"`` in the item
            declares a threshold).

    Example::

        {"_target_": "samfed_monai.transforms.LoadRGBd", "keys": ["image", "label"]}
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key, *self.label_keys = self.keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        from samfed_monai.data.reading import read_image, read_mask

        result = dict(data)
        if self.image_key not in data:
            if self.allow_missing_keys:
                return result
            raise KeyError(f"LoadRGBd: the item has no {self.image_key!r}, only {sorted(map(str, data))}")
        image = read_image(data[self.image_key])
        result[self.image_key] = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
        result["native_size"] = (image.shape[0], image.shape[1])
        for key in self.label_keys:
            if data.get(key) is not None:
                mask = read_mask(data[key], data.get("mask_threshold"))
                result[key] = torch.from_numpy(mask)[None].float()
        return result


LABEL_RESIZE = ("area", "nearest")
"""How a label is brought to the network's size: by the share of a pixel that it covers, foreground from a half on, or
by the pixel at the upper left of each, as torch's ``nearest`` does. The latter moves labels by up to half a pixel
against images and soft masks; the first tables of ``docs/results`` were made with it."""


class ResizeWithLabeld(Resized):
    """MONAI's ``Resized`` of an image and its label, which refuses another way for labels when it is built.

    ``Resized`` itself would take any mode, and refuse a misspelt one with the first image.

    Args:
        keys: the image's key and the label's; an item without a label is taken.
        spatial_size: height and width in pixels.
        mode: of the image, and of the label, see :data:`LABEL_RESIZE`.

    Raises:
        Refused: another mode for the label.

    Example::

        {"_target_": "samfed_monai.transforms.ResizeWithLabeld", "keys": ["image", "label"],
         "spatial_size": ["@image_size", "@image_size"], "mode": ["area", "@label_resize"]}
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], mode: Sequence[str]) -> None:
        label = mode[-1]
        if label not in LABEL_RESIZE:
            expected, mend = f"one of {list(LABEL_RESIZE)}", did_you_mean(str(label), LABEL_RESIZE)
            raise Refused([Problem("train.json -> label_resize", found=repr(label), expected=expected, mend=mend)])
        super().__init__(keys, spatial_size, mode=mode, allow_missing_keys=True)


class LoadSoftMaskd(Transform):
    """Adds the teacher's probabilities to an item that carries its image's hash.

    Stands after the image is loaded and before the views, so that both move together. It reads ``image_sha256``, the
    hash of the image file. A stored mask covers the whole image, whatever its resolution; here it is resized bilinearly
    to the current size of ``image``, (C, h, w).

    Args:
        store: the store's folder, or a :class:`~samfed_monai.data.SoftMaskStore`; ``None`` leaves items as they are.
        teacher_sha256: the teacher's identity; not needed with a store object.
        masks_for: who uses the masks; ``None``, which a reference to a disabled guide is, leaves items as they are.
        output_key: receives (1, h, w) float32 in [0, 1].

    Raises:
        Refused: the store has no readable mask of the image (at call time), or no teacher is named.

    Example::

        {"_target_": "samfed_monai.transforms.LoadSoftMaskd", "store": "@store_dir",
         "teacher_sha256": "@teacher_sha256", "masks_for": "@guides#sam"}
    """

    def __init__(
        self,
        store: str | Path | SoftMaskStore | None,
        teacher_sha256: str | None = None,
        *,
        masks_for: Any = "whoever trains on the item",
        output_key: str = "teacher",
    ) -> None:
        self.store, self.output_key = None, output_key
        if store is None or masks_for is None:
            return
        if not isinstance(store, SoftMaskStore):
            if not store or not teacher_sha256:
                found = f"store {store!r}, teacher_sha256 {teacher_sha256!r}"
                mend = "set the knobs store_dir and teacher_sha256, or neither"
                expected = "a folder and a teacher's hash"
                raise Refused([Problem("LoadSoftMaskd", found=found, expected=expected, mend=mend)])
            store = SoftMaskStore(store, teacher_sha256=teacher_sha256)
        self.store = store

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.store is None:
            return result
        mask = self.store.get(data["image_sha256"])
        result[self.output_key] = resize_probabilities(mask[None], data["image"].shape[-2:])[0]
        return result


class RenameItemsd(MapTransform):
    """Gives items other names; what had such a name before is gone.

    Labelled images so are learned from in their strong view: ``image_strong`` takes the place of ``image``.

    Args:
        keys: what to rename.
        names: the new names, one for each key.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        Refused: not one name for each key.

    Example::

        {"_target_": "samfed_monai.transforms.RenameItemsd", "keys": "image_strong", "names": "image"}
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple(names)
        if len(self.names) != len(self.keys):
            found = f"{len(self.names)} names for {len(self.keys)} keys"
            raise Refused([Problem("RenameItemsd -> names", found=found, expected="one name for each key")])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, name in self.key_iterator(data, self.names):
            result[name] = result.pop(key)
        return result


KEY, GATE = "target", "target_gate"


class PublicTargets:
    """A soft mask and a gate for each public image, in memory; empty outside the steps that use them.

    Whoever fills one and whoever reads it hold the same one: a copy of a transform that reads it does, too.

    Example::

        "targets": {"_target_": "samfed_monai.transforms.PublicTargets"}
    """

    def __init__(self) -> None:
        self.masks: Tensor | None = None
        self.gate: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> PublicTargets:
        return self

    def set(self, masks: Tensor, gate: Tensor) -> None:
        """Takes (N, C, h, w) uint8 masks, 255 for a probability of 1, and (N,) bool gates, in the list's order."""
        self.masks, self.gate = masks, gate

    def clear(self) -> None:
        """Forgets both; items then carry no target."""
        self.masks = self.gate = None


class LoadTargetd(Transform, RandomizableTrait):
    """Adds an item's target and gate, where there are any; leaves the item alone otherwise.

    Stands after the image is loaded and before the weak view, so that both move together. It counts as random, so that
    no cache keeps a target of an earlier round.

    Args:
        targets: the holder, shared with whoever fills it.

    Reads ``index``, the item's place in the public list, and ``image``, (C, h, w), to whose size the mask is brought
    (bilinearly). Adds ``target``, (C, h, w) float32 in [0, 1], and ``target_gate``, float32 0 or 1.

    Example::

        {"_target_": "samfed_monai.transforms.LoadTargetd", "targets": "@targets"}
    """

    def __init__(self, targets: PublicTargets) -> None:
        self.targets = targets

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.targets.masks is None or self.targets.gate is None:
            return item
        index = int(item["index"])
        mask = self.targets.masks[index][None].float() / 255
        item[KEY] = resize_probabilities(mask, item["image"].shape[-2:])[0]
        item[GATE] = self.targets.gate[index].to(torch.float32)
        return item
