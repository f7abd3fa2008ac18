"""The public set as the teacher's fit takes it, and the labelled images that it is examined on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from samfed_monai.errors import Problem, Refused

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

        {"_target_": "samfed_monai.parts.PublicSet", "datalist": "@datalist", "data_root": "@data_root"}
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
        from samfed_monai.data import DataList, load_records, split_public

        self._list, self._data_root = DataList.load(datalist), data_root
        self._evaluate_on, self._evaluate_limit = evaluate_on, evaluate_limit
        self.hash = self._list.hash
        public = load_records(self._list, data_root, split="public", limit=limit)
        self.train, self.held_out = split_public(public, held_out_fraction, seed)

    @cached_property
    def tests(self) -> dict[str, Records]:
        from samfed_monai.networks import evaluation_records

        return evaluation_records(self._list, self._data_root, self._evaluate_on, self._evaluate_limit)


def check_public_limit(limit: int | None) -> None:
    """Refuses a number of public images that leaves none to fit on or none to hold out."""
    if limit is not None and not (isinstance(limit, int) and limit >= 2):
        expected, mend = "a number of images >= 2, or null", "null takes all; one image at least is held out"
        raise Refused([Problem("teacher.json -> public_limit", found=repr(limit), expected=expected, mend=mend)])
