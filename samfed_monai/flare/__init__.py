"""The federation on NVIDIA FLARE: the same controller and the same sites, with FLARE between them."""

from samfed_monai.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "FederationController": "controller",
        "FlareTransport": "transport",
        "Post": "post",
        "export_job": "job",
    },
)
