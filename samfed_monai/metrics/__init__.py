"""Scores of predicted masks: Dice, IoU, HD95 and what is done about empty masks; what an image costs.

A leaf: it imports nothing else of the package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
