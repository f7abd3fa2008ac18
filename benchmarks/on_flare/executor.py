"""The package's executor, whose training process does the payload's work."""

from samfed_monai.flare.executor import SiteExecutor


class BenchExecutor(SiteExecutor):
    """Starts :mod:`on_flare.site`."""

    worker = "on_flare.site"
