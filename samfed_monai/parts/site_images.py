"""The images that a trainer may see: the public ones, and those of its site."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.records_of_site import site_records

SplitName = Literal["public", "unlabelled", "labelled", "validation", "test"]


class SiteImages:
    """Records of each split of one site, and of the public set, out of a data list.

    Args:
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        site: the site's name; "" is the server, which has the public images alone.
        oracle: whether labels of the site's unlabelled images are read, where the list has any.
        limit: at most this many images of each of the site's splits, 1 or more; the public set stays whole.

    Raises:
        Refused: a limit below 1.

    Example::

        {"_target_": "samfed_monai.parts.SiteImages", "datalist": "@datalist", "data_root": "@data_root",
         "site": "@site", "oracle": "@oracle", "limit": "@limit"}
    """

    def __init__(
        self,
        *,
        datalist: str | Path,
        data_root: str | Path,
        site: str | None = "",
        oracle: bool = False,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            expected, mend = "a number of images >= 1, or null", "null takes all images"
            raise Refused([Problem("train.json -> limit", found=repr(limit), expected=expected, mend=mend)])
        self.datalist, self.data_root, self.site = datalist, data_root, site
        self.oracle, self.limit = oracle, limit

    def records(self, split: SplitName) -> list[dict[str, Any]]:
        """Records of one split, as of :func:`samfed_monai.data.load_records`; none of a site's at the server.

        ``labelled`` are those of ``unlabelled`` whose label the list knows, with it: supervised variants train on them.

        Raises:
            Refused: unknown site or split, missing files.
        """
        if split == "labelled":
            from samfed_monai.data.grouping import subset

            own = site_records(
                datalist=self.datalist, data_root=self.data_root, split="unlabelled", site=self.site, limit=None
            )
            records = [record for record in own if "label" in record]
            chosen = subset([one["image_sha256"] for one in records], self.limit)
            return [records[index] for index in chosen]
        if split == "public":
            from samfed_monai.data import load_records

            return load_records(self.datalist, self.data_root, split=split)
        return site_records(
            datalist=self.datalist,
            data_root=self.data_root,
            split=split,
            site=self.site,
            with_labels=self.oracle if split == "unlabelled" else True,
            limit=self.limit,
        )
