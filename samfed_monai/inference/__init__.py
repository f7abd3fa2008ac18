"""Segments new images with any kind of trained model, writes masks in many formats, and exports networks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
