"""Parts that every bundle has and none changes: where images come from, and in which form engines take them."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "PublicSet": "public_set",
        "SiteAlone": "site_alone",
        "SiteImages": "site_images",
        "SplitDataset": "split_dataset",
        "best_device": "wiring",
        "model_path": "wiring",
        "on_device": "wiring",
        "parameters_of": "wiring",
        "part_of": "wiring",
    },
)
