"""Loads an item's image, label, soft mask and targets, and resizes predictions to the size of the image file."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged, MapTransform, Resized, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import ensure_tuple
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from samfed_monai.core.errors import Problem, did_you_mean, refused
from samfed_monai.core.run_log import muted, without_warnings
from samfed_monai.core.validators import require
from samfed_monai.data.classes import planes_of, read_classes
from samfed_monai.data.datalist import LabelKind
from samfed_monai.data.reading import read_image, read_mask
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities
from samfed_monai.data.weak_labels import read_weak_label


def plain(value: Any) -> Tensor:
    """Converts to a float32 tensor without MONAI's metadata (which costs time in every operation and collate)."""
    tensor = torch.as_tensor(value)
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return tensor.float()


class LoadRGBd(MapTransform):
    """Loads image and label of a record of ``samfed_monai.data.load_records``.

    The image becomes (3, H, W) float32 in [0, 1], the label (1, H, W) float32 in {0, 1}, or {0, 1, 255} for a weak one
    (``label_kind`` in the item), both upright. With K classes (``classes`` in the item) the label is (K + 1, H, W), a
    plane of 0 and 1 for the background and for each class; a pixel without a label is 0 in all planes. The item also
    gets ``"native_size": (H, W)``, to resize a predicted mask to the image's own size. A missing label is skipped;
    nothing is resized.

    Args:
        keys: the image's key, then the label's if any; values are paths.

    Raises:
        Refused: at call time, if a file cannot be read or a mask is not binary (``"mask_threshold"`` in the item
            sets a threshold).

    Example::

        {"_target_": "samfed_monai.transforms.LoadRGBd", "keys": ["image", "label"]}
    """

    def __init__(self, keys: KeysCollection = ("image", "label")) -> None:
        super().__init__(keys)
        self.image_key, *self.label_keys = self.keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.image_key not in data:
            raise KeyError(f"LoadRGBd: the item has no {self.image_key!r}, only {sorted(map(str, data))}")
        image = read_image(data[self.image_key])
        result[self.image_key] = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
        result["native_size"] = (image.shape[0], image.shape[1])
        for key in self.label_keys:
            if data.get(key) is not None:
                result[key] = torch.from_numpy(read_label(data, key)).float()
        return result


def read_label(record: Mapping[Any, Any], key: Hashable = "label") -> NDArray[np.uint8]:
    """Reads the label of a record of ``samfed_monai.data.load_records``, of any kind: (C, H, W), see :class:`LoadRGBd`.

    Raises:
        Refused: the file cannot be read, or is not a label of that kind.
    """
    weak, classes = record.get("label_kind", LabelKind.MASK) != LabelKind.MASK, record.get("classes")
    if classes is not None:
        reader = read_weak_label if weak else read_classes
        return planes_of(reader(record[key], int(classes)), int(classes))
    return (read_weak_label(record[key]) if weak else read_mask(record[key], record.get("mask_threshold")))[None]


class RGBReader(ImageReader):
    """MONAI reader that uses :func:`samfed_monai.data.reading.read_image`: (H, W, 3) from 0 to 255, upright.

    MONAI's ``PILReader`` transposes images, ignores EXIF and does not convert grey and palette images.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **options: Any) -> NDArray[np.uint8]:
        return read_image(Path(data if isinstance(data, str | os.PathLike) else data[0]))

    def get_data(self, img: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        return img, {"spatial_shape": np.array(img.shape[:2]), "original_channel_dim": -1}


class LoadImageRGBd(LoadImaged):
    """MONAI's ``LoadImaged`` with :class:`RGBReader`: the image becomes (H, W, 3) float32 from 0 to 255.

    It is for ``inference.json``: MONAI Deploy leaves out transforms named ``LoadImage`` and provides its own images,
    which the following ``EnsureChannelFirstd`` and ``ScaleIntensityRanged`` also fit.

    Args:
        keys: keys of the images' paths.

    Raises:
        RuntimeError: by MONAI, at call time, with the refusal, if a file cannot be read.

    Example::

        {"_target_": "samfed_monai.transforms.LoadImageRGBd", "keys": "image"}
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        # MONAI builds all of its readers, which warn of missing decoders, and would try them after this one refuses a
        # file.
        with muted("monai.data.nvimgcodec_pydicom_plugin"), without_warnings():
            super().__init__(keys, reader=RGBReader, image_only=True)
        del self._loader.readers[:-1]


class InvertResized(MapTransform):
    """Resizes predictions bilinearly to the size of their image before ``Resized``.

    MONAI's ``Invertd`` would use the image's mode (``area``), which repeats pixels. Use it before the sigmoid: the
    contour of 0.5 is then straight between the pixels of a small prediction. Logits of several classes become the
    log-odds of each class's softmax, so that their sigmoid is that softmax.

    Args:
        keys: keys of predictions, (C, h, w) float.
        ref_key: key of the image that ``Resized`` resized; MONAI must track its metadata (``set_track_meta``).

    Raises:
        KeyError: at call time, if the image's metadata have no resize.

    Example::

        {"_target_": "samfed_monai.transforms.InvertResized", "keys": "pred", "ref_key": "image"}
    """

    def __init__(self, keys: KeysCollection, ref_key: str = "image") -> None:
        super().__init__(keys)
        self.ref_key = ref_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        size = self._size(data.get(self.ref_key))
        for key in self.key_iterator(result):
            logits = functional.interpolate(plain(result[key])[None], size=size, mode="bilinear", align_corners=False)
            result[key] = (logits if logits.shape[1] == 1 else torch.logit(logits.softmax(dim=1), eps=1e-7))[0]
        return result

    def _size(self, image: Any) -> tuple[int, ...]:
        for operation in image.applied_operations if isinstance(image, MetaTensor) else []:
            if operation.get("class") == "Resize":
                return tuple(int(side) for side in operation["orig_size"])
        found = "no MetaTensor" if not isinstance(image, MetaTensor) else "a MetaTensor that was not resized"
        expected = "an image that Resized has resized while MONAI tracked metadata (monai.data.set_track_meta)"
        raise KeyError(f"InvertResized: {self.ref_key!r} is {found}; expected {expected}")


LABEL_RESIZE = ("area", "nearest")
"""Modes for resizing a label: by its area in each new pixel, which is foreground from one half, or by the pixel at the
upper left, as torch's ``nearest``. The latter shifts labels by up to half a pixel against images and soft masks; the
first tables of ``docs/results`` used it."""


class ResizeWithLabeld(Resized):
    """MONAI's ``Resized`` for an image and its label; the label's mode is checked at construction.

    ``Resized`` itself accepts any mode, and refuses a misspelt one only at the first image. Each pixel of a label with
    several classes, (K + 1, H, W), gets one of them: the background if that covers more than half of the pixel, else
    the class that covers most.

    Args:
        keys: the image's key and the label's; the label may be missing.
        spatial_size: height and width in pixels.
        mode: mode of the image, and of the label, see :data:`LABEL_RESIZE`; or one for both.

    Raises:
        Refused: an unknown mode for the label.

    Example::

        {"_target_": "samfed_monai.transforms.ResizeWithLabeld", "keys": ["image", "label"],
         "spatial_size": ["@image_size", "@image_size"], "mode": ["area", "@label_resize"]}
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], mode: Sequence[str] | str) -> None:
        label = ensure_tuple(mode)[-1]
        if label not in LABEL_RESIZE:
            expected, hint = f"one of {list(LABEL_RESIZE)}", did_you_mean(str(label), LABEL_RESIZE)
            raise refused("train.json -> label_resize", found=repr(label), expected=expected, hint=hint)
        super().__init__(keys, spatial_size, mode=mode, allow_missing_keys=True)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = super().__call__(data, lazy)
        label = result.get(self.keys[-1])
        if len(self.keys) > 1 and label is not None and len(label) > 1:
            shares = torch.as_tensor(label)
            chosen = torch.where(shares[0] > 0.5, 0, shares[1:].argmax(dim=0) + 1)
            result[self.keys[-1]] = torch.zeros_like(shares).scatter_(0, chosen[None], 1)
        return result


class LoadSoftMaskd(Transform):
    """Adds the teacher's probabilities to an item with the hash of its image.

    Use it after the image is loaded and before the views, which transform both together. It reads ``image_sha256``, the
    hash of the image file. A stored mask covers the whole image at any resolution; it is resized bilinearly to the
    current size of ``image``, (C, h, w).

    Args:
        store: the store's folder, or a :class:`~samfed_monai.data.SoftMaskStore`; ``None`` does not change items.
        teacher_sha256: the teacher's identity; not needed with a store object.
        masks_for: the user of the masks; ``None``, as from a reference to a disabled guide, does not change items.
        output_key: key for the mask, (C, h, w) float32 in [0, 1].

    Raises:
        Refused: at call time, the store has no readable mask of the image; no teacher is given.

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
                hint = "set both options, store_dir and teacher_sha256, or neither"
                raise refused("LoadSoftMaskd", found=found, expected="a folder and a teacher's hash", hint=hint)
            store = SoftMaskStore(store, teacher_sha256=teacher_sha256)
        self.store = store

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.store is None:
            return result
        mask = self.store.get(data["image_sha256"])
        result[self.output_key] = resize_probabilities(mask[None], data["image"].shape[-2:])[0]
        return result


def one_each(names: Sequence[Any], keys: Sequence[Any], where: str) -> list[Problem]:
    """A problem unless there are as many names as keys."""
    found = f"{len(names)} names for {len(keys)} keys"
    return [] if len(names) == len(keys) else [Problem(where, found, "one name for each key")]


class RenameItemsd(MapTransform):
    """Renames entries of an item, replacing existing ones.

    With it, training can use the strong view of labelled images: ``image_strong`` replaces ``image``.

    Args:
        keys: keys to rename.
        names: the new names, one for each key.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        Refused: the numbers of names and keys differ.

    Example::

        {"_target_": "samfed_monai.transforms.RenameItemsd", "keys": "image_strong", "names": "image"}
    """

    def __init__(self, keys: KeysCollection, names: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = ensure_tuple(names)
        require(one_each(self.names, self.keys, "RenameItemsd -> names"))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key, name in self.key_iterator(data, self.names):
            result[name] = result.pop(key)
        return result


KEY, GATE = "target", "target_gate"


class PublicTargets:
    """A soft mask and a gate for each public image, in memory; empty outside the steps that use them.

    Writers and readers share one object, which deep copies of a transform also keep.

    Example::

        "targets": {"_target_": "samfed_monai.transforms.PublicTargets"}
    """

    def __init__(self) -> None:
        self.masks: Tensor | None = None
        self.gate: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> PublicTargets:
        return self

    def set(self, masks: Tensor, gate: Tensor) -> None:
        """Sets (N, C, h, w) uint8 masks, 255 for a probability of 1, and (N,) bool gates, in the list's order."""
        self.masks, self.gate = masks, gate

    def clear(self) -> None:
        """Removes both; items then get no target."""
        self.masks = self.gate = None


class LoadTargetd(Transform, RandomizableTrait):
    """Adds an item's target and gate, if there are any.

    Use it after the image is loaded and before the weak view, which transforms both together. It counts as random, so
    that no cache keeps a target of an earlier round.

    Args:
        targets: the targets, shared with the object that sets them.

    Reads ``index``, the item's position in the public list, and ``image``, (C, h, w), to whose size the mask is resized
    bilinearly. Adds ``target``, (C, h, w) float32 in [0, 1], and ``target_gate``, float32 0 or 1.

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
        item[KEY] = resize_probabilities(self.targets.masks[index][None].float() / 255, item["image"].shape[-2:])[0]
        item[GATE] = self.targets.gate[index].to(torch.float32)
        return item
