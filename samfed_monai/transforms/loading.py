"""Reading an item's image, label, soft mask and targets from disk; bringing a prediction back to its image's size."""

from __future__ import annotations

import logging
import os
import warnings
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
from samfed_monai.core.validators import require
from samfed_monai.data.classes import planes_of, read_classes
from samfed_monai.data.datalist import LabelKind
from samfed_monai.data.reading import read_image, read_mask
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities
from samfed_monai.data.weak_labels import read_weak_label


def plain(value: Any) -> Tensor:
    """A float32 tensor without MONAI's metadata (which costs time in every operation and every collate)."""
    tensor = torch.as_tensor(value)
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    return tensor.float()


class LoadRGBd(MapTransform):
    """Loads what a record of ``samfed_monai.data.load_records`` points at.

    The image becomes (3, H, W) float32 in [0, 1], the label (1, H, W) float32 in {0, 1}, or {0, 1, 255} where the item
    says that it is a weak one (``label_kind``), both upright. Of K classes (``classes`` in the item) it becomes
    (K + 1, H, W), a plane of 0 and 1 for the background and for each of them, none of which has a pixel without a
    label. The item also receives ``"native_size": (H, W)``, to bring a predicted mask back to the image's own size. A
    label that the item does not have is skipped; nothing is resized.

    Args:
        keys: the image's key, then the label's if any; values are paths.

    Raises:
        Refused: at call time, if a file cannot be read or a mask is not binary (``"mask_threshold"`` in the item
            declares a threshold).

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
    """The label of a record of ``samfed_monai.data.load_records``, whatever its kind: (C, H, W), see :class:`LoadRGBd`.

    Raises:
        Refused: the file cannot be read, or is no label of that kind.
    """
    weak, classes = record.get("label_kind", LabelKind.MASK) != LabelKind.MASK, record.get("classes")
    if classes is not None:
        read = read_weak_label if weak else read_classes
        return planes_of(read(record[key], int(classes)), int(classes))
    return (read_weak_label(record[key]) if weak else read_mask(record[key], record.get("mask_threshold")))[None]


class RGBReader(ImageReader):
    """MONAI's door to :func:`samfed_monai.data.reading.read_image`: (H, W, 3) from 0 to 255, upright.

    MONAI's ``PILReader`` turns pictures on their side, ignores their EXIF and takes grey and palettes as they come.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **options: Any) -> NDArray[np.uint8]:
        return read_image(Path(data if isinstance(data, str | os.PathLike) else data[0]))

    def get_data(self, img: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        return img, {"spatial_shape": np.array(img.shape[:2]), "original_channel_dim": -1}


class LoadImageRGBd(LoadImaged):
    """MONAI's ``LoadImaged`` with :class:`RGBReader`: the image becomes (H, W, 3) float32 from 0 to 255.

    It is in ``inference.json``, since MONAI Deploy leaves out what is called ``LoadImage`` and brings images of
    its own; ``EnsureChannelFirstd`` and ``ScaleIntensityRanged`` after it are meant for both.

    Args:
        keys: of the images' paths.

    Raises:
        RuntimeError: MONAI's, at call time, with the refusal in it, if a file cannot be read.

    Example::

        {"_target_": "samfed_monai.transforms.LoadImageRGBd", "keys": "image"}
    """

    def __init__(self, keys: KeysCollection = "image") -> None:
        # MONAI builds all of its readers, which complain of decoders that are not here, and would go on to them where
        # this one refuses a file.
        decoders = logging.getLogger("monai.data.nvimgcodec_pydicom_plugin")
        level = decoders.level
        decoders.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                super().__init__(keys, reader=RGBReader, image_only=True)
        finally:
            decoders.setLevel(level)
        del self._loader.readers[:-1]


class InvertResized(MapTransform):
    """Brings predictions back to the size that their image had before ``Resized``, bilinearly.

    MONAI's ``Invertd`` would take the way of the image (``area``) back again, which repeats pixels. Put it before the
    sigmoid: the contour of 0.5 then runs straight between the pixels of a small prediction. Logits of several classes
    become the log-odds of each class's softmax, so that their sigmoid is that softmax.

    Args:
        keys: of predictions, (C, h, w) float.
        ref_key: of the image that ``Resized`` resized; MONAI must track its metadata (``set_track_meta``).

    Raises:
        KeyError: at call time, if nothing says that the image was resized.

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
        done = image.applied_operations if isinstance(image, MetaTensor) else []
        for operation in done:
            if operation.get("class") == "Resize":
                return tuple(int(side) for side in operation["orig_size"])
        found = "no MetaTensor" if not isinstance(image, MetaTensor) else "a MetaTensor that was not resized"
        expected = "an image that Resized has resized while MONAI tracked metadata (monai.data.set_track_meta)"
        raise KeyError(f"InvertResized: {self.ref_key!r} is {found}; expected {expected}")


LABEL_RESIZE = ("area", "nearest")
"""How a label is brought to the network's size: by the share of a pixel that it covers, foreground from a half on, or
by the pixel at the upper left of each, as torch's ``nearest`` does. The latter moves labels by up to half a pixel
against images and soft masks; the first tables of ``docs/results`` were made with it."""


class ResizeWithLabeld(Resized):
    """MONAI's ``Resized`` of an image and its label, which refuses another way for labels when it is built.

    ``Resized`` itself would take any mode, and refuse a misspelt one with the first image. A pixel of a label of
    several classes, (K + 1, H, W), has one of them afterwards: the background where that covers more than half of it,
    else the class that covers most.

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
    """Adds the teacher's probabilities to an item that carries its image's hash.

    Comes after the image is loaded and before the views, so that both move together. It reads ``image_sha256``, the
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
                hint = "set the options store_dir and teacher_sha256, or neither"
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
    """What is wrong with names that are not as many as keys."""
    found = f"{len(names)} names for {len(keys)} keys"
    return [] if len(names) == len(keys) else [Problem(where, found, "one name for each key")]


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
        require(one_each(self.names, self.keys, "RenameItemsd -> names"))

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

    Comes after the image is loaded and before the weak view, so that both move together. It counts as random, so that
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
