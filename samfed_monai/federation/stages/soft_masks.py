"""What a site computes with the teacher before the first round: its soft masks, and how good the teacher is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.data import DataList, SoftMaskStore, load_records
from samfed_monai.federation.stages.made_once import made_once
from samfed_monai.federation.stages.workflow_config import WorkflowConfig

if TYPE_CHECKING:
    from samfed_monai.networks import Teacher


class SiteMasks:
    """The soft-mask stores of all sites of a run in one process, one folder each; nothing of them is ever sent.

    Args:
        cache_dir: ``<cache_dir>/soft_masks/<site>`` is a site's store.
        datalist: the frozen list.
        data_root: folder that the list's paths are relative to.
        limit: at most this many images of each split, the same as its trainer and evaluator see; ``None`` is all.
    """

    def __init__(
        self, cache_dir: str | Path, datalist: DataList, data_root: str | Path, *, limit: int | None = None
    ) -> None:
        self.folder, self.datalist, self.data_root = Path(cache_dir) / "soft_masks", datalist, data_root
        self.limit = limit

    def store_dir(self, site: str) -> Path:
        """Folder of a site's store."""
        return self.folder / site

    def fill(self, teacher: Teacher, splits: Sequence[str]) -> int:
        """Shows the teacher every image of ``splits`` that its store lacks; returns how many these were."""
        from samfed_monai.teacher import fill_store

        computed = 0
        for site in self.datalist.sites:
            with made_once(self.folder / f"{site}.complete"):
                store = SoftMaskStore(self.store_dir(site), teacher_sha256=teacher.sha256)
                for split in splits:
                    computed += fill_store(teacher, self.records(site, split), store)
        return computed

    def teacher_scores(
        self, teacher_sha256: str, config: WorkflowConfig, splits: Sequence[str]
    ) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """The teacher's own scores per image: size, labels and kind of HD95 are those of the students' evaluation.

        Returns:
            Site to split to rows of ``{"id", "dice", "iou", "hd95", "empty"}``.
        """
        import torch

        from samfed_monai.data.soft_masks import resize_probabilities
        from samfed_monai.metrics import segmentation_scores

        parser = config.parser()
        preprocessing = parser.get_parsed_content("validate#preprocessing")
        pooled = getattr(parser.get_parsed_content("validate#scores"), "pooled", False)
        tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for site in self.datalist.sites:
            store = SoftMaskStore(self.store_dir(site), teacher_sha256=teacher_sha256)
            tables[site] = {}
            for split in splits:
                rows = tables[site][split] = []
                for record in self.records(site, split):
                    label = torch.as_tensor(preprocessing(dict(record))["label"])
                    mask = store.get(record["image_sha256"])[None]
                    mask = resize_probabilities(mask, label.shape[-2:])
                    prediction = (mask[0, 0] > 0.5).numpy()
                    scores = segmentation_scores(prediction, (label[0] > 0.5).numpy(), pooled=pooled)
                    rows.append({"id": record["id"], **scores.as_dict()})
        return tables

    def records(self, site: str, split: str) -> list[dict[str, Any]]:
        """Those images of a site's split that are used."""
        return load_records(self.datalist, self.data_root, split=split, site=site, limit=self.limit)
