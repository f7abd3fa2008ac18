"""From images to a data list: sources, partitions, checks, the hashed list, and the soft-mask store."""

from .checks import check_datalist
from .datalist import DataList, Item, Site, Split
from .prepare import Options, Prepared, prepare_folders, prepare_isic, prepare_list, prepare_polyp
from .quality_report import report_on
from .reading import read_image, read_mask
from .records import load_records, public_hash, split_public
from .soft_masks import SoftMaskStore
from .synthetic import render_synthetic

__all__ = [
    "DataList",
    "Item",
    "Options",
    "Prepared",
    "Site",
    "SoftMaskStore",
    "Split",
    "check_datalist",
    "load_records",
    "prepare_folders",
    "prepare_isic",
    "prepare_list",
    "prepare_polyp",
    "public_hash",
    "read_image",
    "read_mask",
    "render_synthetic",
    "report_on",
    "split_public",
]
