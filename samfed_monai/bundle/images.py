"""The images that a bundle's workflows see: the public set, a site's images, one split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

from monai.data import CacheDataset
from monai.data.utils import pickle_hashing
from monai.transforms import RandomizableTrait, Transform

from samfed_monai.core.errors import Problem
from samfed_monai.core.io import sha256_file
from samfed_monai.core.validators import require, whole
from samfed_monai.data.classes import other_classes
from samfed_monai.data.datalist import SERVER_NAMES, DataList
from samfed_monai.data.partitions import subset
from samfed_monai.data.records import load_records, split_public
from samfed_monai.handlers.evaluation import labelled_records
from samfed_monai.handlers.images_seen import IMAGE_READ

SplitName = Literal["public", "unlabelled", "labelled", "validation", "test"]


@dataclass(kw_only=True, eq=False)
class SiteImages:
    """Records of each split of one site, and of the public set, out of a data list.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        site: the site's name; "" is the server, which has the public images alone.
        oracle: whether labels of the site's unlabelled images are read, where the list has any.
        limit: at most this many images of each of the site's splits, 1 or more; the public set stays whole.
        weak_labels: whether the site's own labels may be scribbles, points, boxes or blocks; a method that learns from
            them says so.
        classes: names of the classes that networks tell apart; ``None`` is one.

    Raises:
        Refused: a limit below 1; when a split is asked for, a list of other classes.

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
        hint = "null takes all images"
        require(whole("train.json -> limit", self.limit, "a number of images", least=1, or_null=True, hint=hint))

    def records(self, split: SplitName) -> list[dict[str, Any]]:
        """Records of one split, as of :func:`samfed_monai.data.load_records`; none of a site's at the server.

        ``labelled`` are those of ``unlabelled`` whose label the list knows, with it: supervised variants train on them.

        Raises:
            Refused: unknown site or split, missing files.
        """
        require(self._other_classes)
        if split == "public":
            return load_records(self.datalist, self.data_root, split=split)
        if self.site is None or self.site in SERVER_NAMES:
            return []
        labelled = split == "labelled"
        found = load_records(
            self.datalist,
            self.data_root,
            split="unlabelled" if labelled else split,
            site=self.site,
            with_labels=split != "unlabelled" or self.oracle,
            limit=None if labelled else self.limit,
            weak_labels=labelled and self.weak_labels,
        )
        if not labelled:
            return found
        own = [record for record in found if "label" in record]
        return [own[index] for index in subset([one["image_sha256"] for one in own], self.limit)]

    @cached_property
    def _other_classes(self) -> list[Problem]:
        listed = DataList.load(self.datalist)
        return other_classes(listed.classes, self.classes, f"{Path(self.datalist).name} -> classes")


class _SharedItems(list[Any]):
    """Items of the public images, which datasets share for as long as one of them is there."""


_shared_items: WeakValueDictionary[bytes, _SharedItems] = WeakValueDictionary()


class SplitDataset(CacheDataset):
    """Images of one split; what is not random of their transform is done once, when an image is first asked for.

    Every item gets ``image_read``, the SHA-256 of the image file that was read, by which a site counts its images.

    All read images stay in memory: 4 bytes x 4 x image_size^2 each (1 MB at 256 px). Public ones are the same at every
    site: those in one process have one copy of them, as far as they are read alike.

    Args:
        data: where images come from.
        split: as of :meth:`SiteImages.records`.
        transform: of one record. It is copied: two splits may name the same views and each draws its own.

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
        """How many images have other bytes: by what was read, and by the list where nothing was read yet."""
        return len({self._read.get(index) or record["image_sha256"] for index, record in enumerate(self.data)})

    def _transform(self, index: int) -> Any:
        if index not in self._read:  # before the image is read: what is kept from then on
            self._read[index] = "" if self._public else sha256_file(self.data[index]["image"])
        made = super()._transform(index)
        for item in made if isinstance(made, list) else [made]:
            if isinstance(item, dict):
                item[IMAGE_READ] = self._read[index]
        return made

    def _shared(self) -> Any:
        """The cache of datasets with these records and these steps before the first random one; else its own."""
        first = self.transform.get_index_of_first(
            lambda step: isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        )
        try:
            key = pickle_hashing([self.data, self.transform.transforms[:first]])
        except Exception:  # what cannot be pickled has no hash: a function within a function, an open file
            return self._cache
        return _shared_items.setdefault(key, _SharedItems(self._cache))


Records = list[dict[str, Any]]


class PublicSet:
    """A part of ``D_p`` to fit on, a part to choose the epoch by, and sites' labelled images for the report.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        held_out_fraction: share of the public images that chooses the epoch; whole groups at a time, [0, 1).
        seed: decides which.
        evaluate_on: split of every site whose Dice is reported, or ``None``; it decides nothing.
        evaluate_limit: at most this many images of each site in the report.
        limit: fit on at most this many public images, held-out ones included, chosen by hash; ``None`` takes all. It
            shows what a poor teacher does to its students, whose own public images it leaves alone.

    Attributes:
        hash: identity of the data list.
        train, held_out: records of the two parts.
        tests: site to labelled records.

    Raises:
        Refused: a limit below 2; what :func:`samfed_monai.data.load_records` and
            :func:`samfed_monai.data.split_public` refuse.

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
        public = load_records(self._list, data_root, split="public", limit=limit, verify=True)
        self.train, self.held_out = split_public(public, held_out_fraction, seed)

    @cached_property
    def tests(self) -> dict[str, Records]:
        if self._evaluate_on is None:
            return {}
        where, limit = self._data_root, self._evaluate_limit
        return labelled_records(self._list, where, self._list.sites, split=self._evaluate_on, limit=limit)


def check_public_limit(limit: int | None) -> None:
    """Refuses a number of public images that leaves none to fit on or none to hold out."""
    hint = "null takes all; one image at least is held out"
    require(whole("teacher.json -> public_limit", limit, "a number of images", least=2, or_null=True, hint=hint))
