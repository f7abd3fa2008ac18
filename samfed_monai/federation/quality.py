"""What a run leaves beside its model for whoever uses it: what masks' promises are worth, and the colours seen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samfed_monai.data import load_records
from samfed_monai.metrics.quality import FEWEST, Calibration, Colours, Quality, colours_of
from samfed_monai.metrics.quality_file import digests_of, write_quality

if TYPE_CHECKING:
    from samfed_monai.data import DataList
    from samfed_monai.federation.plan import Places
    from samfed_monai.federation.workflow import WorkflowConfig

logger = logging.getLogger(__name__)


def write_quality_of_run(
    calibration: Calibration | None, config: WorkflowConfig, datalist: DataList, places: Places
) -> None:
    """Writes ``quality.json`` into a run's folder.

    Args:
        calibration: of the best model; ``None`` where sites sent too little.
        config: the run's ``train.json``, whose ``validate#preprocessing`` reads the public images.
        datalist: the list; of a federation, in which images have not left their sites, that without theirs.
        places: where images are, and the run's folder.
    """
    if calibration is None:
        text = "expected Dice is not calibrated: fewer than %d validation images say what it is worth"
        logger.info(text, FEWEST)
    colours = public_colours(config, datalist, places.data_root)
    sites = {name: [item.sha256 for item in site.validation] for name, site in datalist.sites.items()}
    write_quality(Quality(calibration, colours, digests_of(sites) if calibration else ()), places.output_dir)


def public_colours(config: WorkflowConfig, datalist: DataList, data_root: str | Path) -> Colours | None:
    """The range of colours of a list's public images, as ``validate#preprocessing`` gives them to a network."""
    preprocessing = config.value("validate#preprocessing")
    records = load_records(datalist, data_root, split="public", with_labels=True)
    return Colours.of(colours_of(np.asarray(preprocessing(dict(record))["image"])) for record in records)
