"""A trainer from the bundle's train.json on synthetic images, with a store of random soft masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import BUNDLE

from samfed_monai.core.io import sha256_bytes
from samfed_monai.data import SoftMaskStore, render_synthetic
from samfed_monai.handlers import EmaGuide

TEACHER_SHA256 = sha256_bytes(b"soft masks for timing")
OFF = "_disabled_"
NO_SAM = {f"guides#sam#{OFF}": True, f"terms#sam_kd#{OFF}": True, f"terms#pseudo_label#{OFF}": True}
OWN_LABELS = {
    f"guides#sam#{OFF}": True,
    f"guides#global#{OFF}": True,
    f"terms#sam_kd#{OFF}": True,
    f"terms#global_kd#{OFF}": True,
    "agreement#rule": "student",
    "agreement#student": "weak",
    "terms#pseudo_label#teacher": "weak",
}
READ_AVERAGE = {"guides#ema#_target_": "training.ReadAverage", f"guides#ema#{OFF}": False}
SUPERVISED = {f"stream#{OFF}": True, f"terms#global_kd#{OFF}": True, **NO_SAM}


class ReadAverage(EmaGuide):
    """An averaged student that is computed even if no term reads it."""

    def is_needed(self, engine: Any) -> bool:
        return True


def prepare(folder: Path, *, images: int, mask_size: int = 128) -> dict[str, Any]:
    """Renders one site and fills its store; returns the options of train.json for them."""
    datalist = render_synthetic(folder / "images", sites=1, images_per_site=images, public=images, validation=2, test=2)
    datalist.save(folder / "list.json")
    store = SoftMaskStore(folder / "store", teacher_sha256=TEACHER_SHA256)
    generator = torch.Generator().manual_seed(0)
    (site,) = datalist.sites
    for item in datalist.sites[site].unlabelled:
        store.put(item.sha256, torch.rand(1, mask_size, mask_size, generator=generator))
    return {
        "datalist": str(folder / "list.json"),
        "data_root": str(folder / "images"),
        "site": site,
        "output_dir": str(folder / "run"),
        "store_dir": str(folder / "store"),
        "teacher_sha256": TEACHER_SHA256,
    }


class Training:
    """A trainer; each call runs ``local_steps`` iterations of the same round.

    Args:
        options: values of train.json by id.
        changes: further overrides by id, as on the command line.
    """

    def __init__(self, options: dict[str, Any], changes: dict[str, Any] | None = None) -> None:
        import monai
        from monai.bundle import ConfigParser

        monai.data.set_track_meta(False)
        self.parser = ConfigParser()
        self.parser.read_config(BUNDLE / "configs" / "train.json")
        for id_, value in {"bundle_root": str(BUNDLE), "standalone": {}, **options, **(changes or {})}.items():
            self.parser.set(value, id_)
        self.trainer = self.parser.get_parsed_content("train#trainer")

    def __call__(self) -> None:
        state = self.trainer.state
        state.iteration = state.epoch = 0
        state.max_epochs = 1
        state.round, state.rounds = 5, 10
        self.trainer.run()

    def replace_guide(self, guide: Any) -> None:
        """Replaces the guide of the same name."""
        guides = self.parser.get_parsed_content("stream").guides
        guides[[each.name for each in guides].index(guide.name)] = guide
