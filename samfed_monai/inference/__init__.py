"""Masks for new images: a trained model of any kind in, masks in any form out; export to formats of others."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
