"""Attacks on what a federation gives away, one a file, against one's own run: ``samfed audit RUN --attack``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
