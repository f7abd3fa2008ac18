"""Segment Anything as a teacher and as a client network: builders, low-rank adaptation, experts, adapters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
