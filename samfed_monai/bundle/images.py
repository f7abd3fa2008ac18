"""Images of a bundle's workflows: the public set, a site's images, one split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import RandomizableTrait, Transform

from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import sha256_file
from samfed_monai.core.validators import require, whole
from samfed_monai.data.checks import check_datalist, facts_of
from samfed_monai.data.classes import class_mismatch
from samfed_monai.data.datalist import SERVER_NAMES, DataList
from samfed_monai.data.partitions import subset
from samfed_monai.data.records import load_records, split_public
from samfed_monai.handlers.evaluation import labelled_records
from samfed_monai.handlers.images_seen import IMAGE_READ

SplitName = Literal["public", "unlabelled", "labelled", "validation", "test"]


@dataclass(kw_only=True, eq=False)
class SiteImages:
    """Records of each split of one site, and of the public set, from a data list.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths are relative to.
        site: the site's name; "" is the server, which has only the public images.
        oracle: whether to read labels of the site's unlabelled images, if the list has any.
        limit: maximum number of images in each of the site's splits, 1 or more; the public set is not limited.
        weak_labels: whether the site's own labels may be scribbles, points, boxes or blocks; for methods that learn
            from them.
        classes: names of the classes to segment; ``None`` is one.

    Raises:
        Refused: a limit below 1; when records are read, a list with other classes.

    Example::

        {"_target_": "samfed_monai.bundle.SiteImages", "datalist": "@datalist", "data_root": "@data_root",
         "site": "@site", "oracle": "@oracle", "limit": "@limit", "classes": "@classes"}
    """

    datalist: str | Path
    data_root: str | Path
    site: str | None = ""
    oracle: bool = False
    limit: int | None = None
    weak_labels: bool = False
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        hint = "null uses all images"
        require(whole("train.json -> limit", self.limit, "a number of images", least=1, or_null=True, hint=hint))

    def records(self, split: SplitName) -> list[dict[str, Any]]:
        """Records of one split, see :func:`samfed_monai.data.load_records`; at the server only those of ``public``.

        ``labelled`` are those of ``unlabelled`` that have a label in the list, with the label, for supervised variants.

        Raises:
            Refused: unknown site or split, missing files.
        """
        require(self._other_classes)
        if split == "public":
            return load_records(self.datalist, self.data_root, split=split)
        if self.site is None or self.site in SERVER_NAMES:
            return []
        labelled = split == "labelled"
        loaded = load_records(
            self.datalist,
            self.data_root,
            split="unlabelled" if labelled else split,
            site=self.site,
            with_labels=split != "unlabelled" or self.oracle,
            limit=None if labelled else self.limit,
            weak_labels=labelled and self.weak_labels,
        )
        if not labelled:
            return loaded
        own = [record for record in loaded if "label" in record]
        return [own[index] for index in subset([one["image_sha256"] for one in own], self.limit)]

    @cached_property
    def _other_classes(self) -> list[Problem]:
        listed = DataList.load(self.datalist)
        return class_mismatch(listed.classes, self.classes, f"{Path(self.datalist).name} -> classes")


class _SharedItems(list[Any]):
    """Cached public images, which datasets share; they are freed with the last of these."""


_shared_items: WeakValueDictionary[bytes, _SharedItems] = WeakValueDictionary()


class SplitDataset(CacheDataset):
    """Images of one split; deterministic transforms are applied once, when an image is first used.

    Every item gets ``image_read``, the SHA-256 of the image file that was read, by which a site counts its images.

    All read images are cached in memory: 4 bytes x 4 x image_size^2 each (1 MB at 256 px). Sites in one process share
    one cache of the public images if records and deterministic transforms are the same.

    Args:
        data: source of the records.
        split: see :meth:`SiteImages.records`.
        transform: transform of one record. It is copied, so that two splits with the same views draw independently.

    Raises:
        Refused: unknown site or split, missing files.

    Example::

        {"_target_": "samfed_monai.bundle.SplitDataset", "data": "@images", "split": "validation",
         "transform": "@validate#preprocessing"}
    """

    def __init__(self, *, data: SiteImages, split: SplitName, transform: Callable[[Any], Any]) -> None:
        super().__init__(data.records(split), copy.deepcopy(transform), runtime_cache="threads")
        self._public, self._read = split == "public", dict[int, str]()
        if self._public:
            self._cache = self._shared()

    def different_images(self) -> int:
        """Number of images with different bytes, by the files that were read, else by the hashes in the list."""
        return len({self._read.get(index) or record["image_sha256"] for index, record in enumerate(self.data)})

    def _transform(self, index: int) -> Any:
        if index not in self._read:  # before the image is read and cached
            self._read[index] = "" if self._public else sha256_file(self.data[index]["image"])
        items = super()._transform(index)
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, dict):
                item[IMAGE_READ] = self._read[index]
        return items

    def _shared(self) -> Any:
        """Cache shared by datasets with equal records and deterministic first transforms; its own if not picklable."""
        first = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        try:
            key = pickle_hashing([self.data, self.transform.transforms[:first]])
        except Exception:  # not picklable, so no hash: a nested function, an open file
            return self._cache
        return _shared_items.setdefault(key, _SharedItems(self._cache))


Records = list[dict[str, Any]]


class PublicSet:
    """A part of ``D_p`` for training, a held-out part to select the epoch, and sites' labelled images for the report.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths are relative to.
        held_out_fraction: fraction of the public images to hold out, in [0, 1); groups of images are not split.
        seed: seed of the split.
        evaluate_on: split of every site whose Dice is reported, or ``None``; it is not used for selection.
        evaluate_limit: maximum number of images of each site in the report.
        limit: maximum number of public images, held-out ones included, chosen by hash; ``None`` takes all. For
            experiments with a poor teacher: students still train on all public images.

    Attributes:
        hash: hash of the data list.
        train, held_out: records of the two parts.
        tests: site to labelled records.

    Raises:
        Refused: a limit below 2, masks without any foreground, or a refusal of
            :func:`samfed_monai.data.load_records`, :func:`samfed_monai.data.check_datalist` or
            :func:`samfed_monai.data.split_public`.

    Example::

        {"_target_": "samfed_monai.bundle.PublicSet", "datalist": "@datalist", "data_root": "@data_root"}
    """

    def __init__(
        self,
        *,
        datalist: str | Path,
        data_root: str | Path,
        held_out_fraction: float = 0.1,
        seed: int = 0,
        evaluate_on: str | None = "test",
        evaluate_limit: int | None = None,
        limit: int | None = None,
    ) -> None:
        check_public_limit(limit)
        self._list, self._data_root = DataList.load(datalist), data_root
        self._evaluate_on, self._evaluate_limit = evaluate_on, evaluate_limit
        self.hash = self._list.hash
        public = load_records(self._list, data_root, split="public", limit=limit)
        hashes = {record["image_sha256"] for record in public}
        used = replace(self._list.for_server(), public=[item for item in self._list.public if item.sha256 in hashes])
        facts = facts_of(used, data_root)
        require(check_datalist(used, data_root, facts))  # all masks, before the fit reads them one by one
        if public and not any(fact.foreground for fact in facts):
            raise refused("public", "only empty masks", "masks with foreground", "check the masks, or --mask-threshold")
        self.train, self.held_out = split_public(public, held_out_fraction, seed)

    @cached_property
    def tests(self) -> dict[str, Records]:
        if self._evaluate_on is None:
            return {}
        root, limit = self._data_root, self._evaluate_limit
        return labelled_records(self._list, root, self._list.sites, split=self._evaluate_on, limit=limit)


def check_public_limit(limit: int | None) -> None:
    """Refuses a number of public images that leaves none to train on or none to hold out."""
    hint = "null uses all images; at least one image is held out"
    require(whole("teacher.json -> public_limit", limit, "a number of images", least=2, or_null=True, hint=hint))
