"""What every bundle's JSON names and none changes: where images come from, in which form engines take them."""

from .images import PublicSet, SiteImages, SplitDataset, site_records
from .wiring import SiteAlone, best_device, model_path, on_device, parameters_of, part_of

__all__ = [
    "PublicSet",
    "SiteAlone",
    "SiteImages",
    "SplitDataset",
    "best_device",
    "model_path",
    "on_device",
    "parameters_of",
    "part_of",
    "site_records",
]
