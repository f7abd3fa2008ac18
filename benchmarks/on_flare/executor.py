"""This package's executor, with the payload's work in the process that trains."""

from samfed_monai.flare.executor import SiteExecutor


class BenchExecutor(SiteExecutor):
    """Starts :mod:`on_flare.site`."""

    worker = "on_flare.site"
