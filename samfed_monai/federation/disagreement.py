"""Where student and teacher segment differently, on images without labels."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from samfed_monai.core.errors import SamFedError
from samfed_monai.core.io import atomic_write, to_csv, write_bytes
from samfed_monai.data.soft_masks import SoftMaskStore, resize_probabilities
from samfed_monai.losses import probabilities
from samfed_monai.metrics import over_classes, scores_by_class, segmentation_scores
from samfed_monai.metrics.quality import estimate

if TYPE_CHECKING:
    from monai.engines import SupervisedEvaluator
    from torch import Tensor

logger = logging.getLogger(__name__)

KEPT = 6
"""Images per site whose masks are kept: two rows of three on a page, and as many as a person looks at."""
SAMPLE = 32
"""Images per site that are looked at after every round; the best model is shown all at the end."""
TABLE = "disagreement.csv"
ROUND = "current"
"""What a round's model is called, until the best one has been looked at."""
COLUMNS = ("id", "image_sha256", "dice", "estimate", "mask")


class Disagreement:
    """Compares a student's masks of a site's unlabelled images with the soft masks that the teacher left there.

    It writes ``disagreement.csv``, one row per image with the Dice between the two masks, lowest first, and of the
    :data:`KEPT` lowest the masks themselves, ``student/<mask>`` and ``teacher/<mask>`` (PNG, 0 and 255 or the values of
    classes, at the size of the student's evaluation). All of it is readable by its owner only and stays at the site.

    Args:
        records: the site's unlabelled images: ``id``, ``image``, ``image_sha256``.
        store: opened when it is asked for: the teacher may come later than this object.
        preprocessing: of a record, as for evaluation: ``image`` (3, H, W) float in [0, 1].
        batch_size: images that the student sees at once.
        folder: ``evaluation`` of the run: the files go into ``<model>/<site>/unlabelled`` there.
        site: the site.
        parts: whether images are slices of volumes, of which many rightly hold nothing: no empty mask agrees with a
            lesion.

    Of a round's model, :data:`SAMPLE` images are looked at, the same in every round; of the best one, all.

    Example::

        compare = Disagreement(
            records, lambda: store, preprocessing, batch_size=8, folder="run/evaluation", site="a"
        )
        compare(evaluator, "best")
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        store: Callable[[], SoftMaskStore],
        preprocessing: Callable[[Any], Any],
        *,
        batch_size: int,
        folder: str | Path,
        site: str,
        parts: bool = False,
    ) -> None:
        self.records, self.store, self.preprocessing = records, store, preprocessing
        self.batch_size, self._folder, self.site, self.parts = batch_size, Path(folder), site, parts

    def __call__(self, evaluator: SupervisedEvaluator, model: str = "best") -> list[float]:
        """Compares the network that the evaluator holds; what fails is logged, since a run does not depend on it.

        Returns:
            The student's estimate of each of its masks (:func:`samfed_monai.metrics.quality.estimate`); 0 of an empty
            one without ``parts``.
        """
        try:
            records = self.records if model == "best" else self.records[:: max(1, -(-len(self.records) // SAMPLE))]
            rows = self._rows(evaluator, records)
            self._write(rows, self._folder / model / self.site / "unlabelled")
            if model == "best":
                shutil.rmtree(self._folder / ROUND / self.site, ignore_errors=True)
            return [row["estimate"] for row in rows]
        except (SamFedError, OSError) as error:
            logger.warning("student and teacher could not be compared on images without masks: %s", error)
            return []

    def _rows(self, evaluator: SupervisedEvaluator, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        from monai.data import DataLoader, Dataset
        from monai.networks.utils import eval_mode

        store, rows, seen = self.store(), list[dict[str, Any]](), 0
        loader = DataLoader(Dataset(records, self.preprocessing), batch_size=self.batch_size, num_workers=0)
        with eval_mode(evaluator.network):
            for batch in loader:
                logits = evaluator.inferer(batch["image"].to(evaluator.state.device), evaluator.network)
                chances = probabilities(logits.float()).cpu().numpy()
                for student, chance in zip(_drawn(logits, 0).cpu().numpy(), chances, strict=True):
                    record, seen = records[seen], seen + 1
                    soft = resize_probabilities(store.get(record["image_sha256"])[None], student.shape)
                    teacher = _drawn(soft, 0.5)[0].numpy()
                    dice = segmentation_scores(student, teacher).dice
                    if logits.shape[1] > 1:
                        dice = over_classes(scores_by_class(student, teacher, logits.shape[1] - 1)).dice
                    promised = estimate(chance) if student.any() or self.parts else 0.0
                    rows.append({**record, "dice": dice, "estimate": promised, "student": student, "teacher": teacher})
                rows.sort(key=lambda row: (row["dice"], row["id"]))
                for row in rows[KEPT:]:
                    row["student"] = row["teacher"] = None
        return rows

    def _write(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
        named = []
        for row in rows:
            name = "" if row["student"] is None else f"{row['image_sha256'][:16]}.png"
            for whose in ("student", "teacher") if name else ():
                with atomic_write(folder / whose / name) as stream:
                    values = row[whose].astype(np.uint8) * (255 if row[whose].dtype == bool else 1)
                    Image.fromarray(values).save(stream, format="PNG")
            named.append({**row, "mask": name})
        write_bytes(folder / TABLE, to_csv(COLUMNS, named).encode())
        kept = {row["mask"] for row in named}
        for old in folder.glob("*/*.png"):  # of the round before
            if old.name not in kept:
                old.unlink()


def _drawn(channels: Tensor, above: float) -> Tensor:
    """Masks (B, H, W) of logits or probabilities (B, C, H, W): bool, or of several classes their values."""
    return channels.argmax(dim=1) if channels.shape[1] > 1 else channels[:, 0] > above
