"""The federation: job, server loop, sites and clients, run folder, privacy filters."""

import lazy_loader

from samfed_monai.core.moved import found_where_moved

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__getattr__ = found_where_moved(__name__, __getattr__)
