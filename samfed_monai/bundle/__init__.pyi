"""Datasets and small components that only a bundle's JSON uses: a site's images, device, parameters, model path."""

from .images import PublicSet, SiteImages, SplitDataset
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
]
