"""Where images become a data list: sources, partitions, checks, the frozen hashed list, and the soft-mask store."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "DataList": "datalist",
        "Item": "items",
        "Options": "assembly",
        "Partition": "partitions",
        "Prepared": "assembly",
        "Site": "items",
        "SoftMaskStore": "soft_masks",
        "Split": "items",
        "check_datalist": "checks",
        "load_records": "records",
        "prepare_folders": "prepare",
        "prepare_isic": "prepare",
        "prepare_list": "prepare",
        "prepare_polyp": "prepare_collections",
        "public_hash": "public_set",
        "read_image": "reading",
        "read_mask": "reading",
        "render_synthetic": "synthetic",
        "report_on": "quality_report",
        "split_public": "records",
    },
)
