"""What a run leaves beside its model for whoever uses it: what masks' promises are worth, and the colours seen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from samfed_monai.core.io import PUBLIC, write_json
from samfed_monai.data import load_records
from samfed_monai.metrics.quality import FEWEST, IN_RUN, Calibration, Colours, Quality, colours_of

if TYPE_CHECKING:
    from samfed_monai.data import DataList
    from samfed_monai.federation.plan import Places
    from samfed_monai.federation.workflow import WorkflowConfig

logger = logging.getLogger(__name__)


def write_quality(calibration: Calibration | None, config: WorkflowConfig, datalist: DataList, places: Places) -> None:
    """Writes ``quality.json`` into a run's folder.

    Args:
        calibration: of the best model; ``None`` where sites sent too little.
        config: the run's ``train.json``, whose ``validate#preprocessing`` reads the public images.
        datalist: the list.
        places: where images are, and the run's folder.
    """
    if calibration is None:
        text = "expected Dice is not calibrated: fewer than %d validation images say what it is worth"
        logger.info(text, FEWEST)
    preprocessing = config.value("validate#preprocessing")
    records = load_records(datalist, places.data_root, split="public", with_labels=True)
    colours = Colours.of(colours_of(np.asarray(preprocessing(dict(record))["image"])) for record in records)
    write_json(places.output_dir / IN_RUN, Quality(calibration, colours).as_dict(), mode=PUBLIC)
