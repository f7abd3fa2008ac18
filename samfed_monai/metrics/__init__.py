"""Scores of predicted masks (Dice, IoU, HD95, conventions for empty masks), estimated quality, cost of an image."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
