"""The federation: job, server loop, sites and clients, run folder, privacy filters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
