"""One network against one split of every site."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.data.datalist_schema import SERVER_NAMES
from samfed_monai.errors import Problem, Refused
from samfed_monai.handlers.trained_weights import trained_weights
from samfed_monai.io import write_json
from samfed_monai.metrics import pool
from samfed_monai.trained_model import trained_otherwise

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator

    from samfed_monai.handlers.score_handler import ScoreHandler

logger = logging.getLogger(__name__)


class SiteEvaluation:
    """Loads weights, runs the evaluator over a split of one site or of all, and writes what it found.

    ``<output_dir>/<site>/<split>/scores.csv`` has one row per image, and predicted masks lie beside it if wanted;
    ``<output_dir>/metrics.json`` has each site's means, the mean over all images, and the convention of both. Sites
    without images in the split are left out.

    Args:
        evaluator: MONAI evaluator whose handlers include ``scores``.
        scores: the evaluator's :class:`ScoreHandler`; where it writes is set here.
        model: weights, ``.safetensors`` or a torch file of plain tensors; see :func:`trained_weights`.
        datalist: file of the data list.
        data_root: folder that the list's paths start from.
        split: ``validation`` or ``test`` (``unlabelled`` only where the list has labels).
        site: the site's name, or "" for all sites.
        preprocessing: transform of one record.
        batch_size: images in a batch.
        output_dir: folder to write to.
        limit: at most this many images of each site.
        settings: knobs of this run, compared with those that the weights' header names (``network_name``,
            ``image_size``); what either side does not name is not compared.
        loaded: whether the evaluator's network has its weights already; ``model`` only names them then.

    Raises:
        Refused: weights that were trained with other settings, when it is built; later those that do not fit, an
            unknown site or split, images without a label.

    Example::

        {"_target_": "samfed_monai.handlers.SiteEvaluation", "evaluator": "@validate#evaluator", "model": "@model"}
    """

    def __init__(
        self,
        *,
        evaluator: SupervisedEvaluator,
        scores: ScoreHandler,
        model: str | Path,
        datalist: str | Path,
        data_root: str | Path,
        split: str = "test",
        site: str | None = "",
        preprocessing: Callable[[Mapping[str, Any]], Any],
        batch_size: int = 8,
        output_dir: str | Path,
        limit: int | None = None,
        settings: Mapping[str, Any] | None = None,
        loaded: bool = False,
    ) -> None:
        if problems := trained_otherwise(model, settings or {}):
            raise Refused(problems)
        self.evaluator, self.scores, self.model = evaluator, scores, Path(model)
        self.datalist, self.data_root, self.split, self.site = datalist, data_root, split, site
        self.preprocessing, self.batch_size = preprocessing, batch_size
        self.output_dir, self.limit, self.loaded = Path(output_dir), limit, loaded

    def run(self) -> dict[str, Any]:
        """Evaluates and returns the content of ``metrics.json``."""
        records = self._records()
        network = self.evaluator.network
        if not self.loaded:
            network.load_state_dict(trained_weights(network, self.model), strict=False)
        sites = {name: self._one_site(name, items) for name, items in records.items()}
        average = pool(sites.values(), skip_empty=self.scores.skip_empty)
        result = {"model": self.model.name, "split": self.split, "sites": sites, "average": average}
        result["convention"] = self.scores.convention
        write_json(self.output_dir / "metrics.json", result)
        rows: dict[str, Any] = {**sites, "average": average}
        for name, row in rows.items():
            far = "-" if row["hd95"] is None else f"{row['hd95']:.1f} px"
            means = (row["dice"], row["iou"], far, row["n"], sum(row["empty"].values()))
            text = "%s, %s: Dice %.4f, IoU %.4f, HD95 %s, %d images, %d with an empty mask"
            logger.info(text, name, self.split, *means)
        return result

    def _records(self) -> dict[str, list[dict[str, Any]]]:
        from samfed_monai.data import DataList, load_records

        listed = DataList.load(self.datalist)
        names = sorted(listed.sites) if self.site is None or self.site in SERVER_NAMES else [self.site]
        found: dict[str, list[dict[str, Any]]] = {
            name: load_records(listed, self.data_root, split=self.split, site=name, with_labels=True, limit=self.limit)
            for name in names
        }
        found = {name: records for name, records in found.items() if records}
        if not found:
            where = f"{self.datalist} -> {self.site or 'sites'} -> {self.split}"
            raise Refused([Problem(where, found="no image", expected="at least one", mend="choose another split")])
        return found

    def _one_site(self, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        from monai.data import DataLoader, Dataset

        loader = DataLoader(Dataset(records, self.preprocessing), batch_size=self.batch_size, num_workers=0)
        self.scores.output_dir = self.output_dir / name / self.split
        self.evaluator.data_loader = loader
        self.evaluator.state.epoch_length = len(loader)
        self.evaluator.run()
        summary: dict[str, Any] = self.evaluator.state.score_summary
        return summary
