"""Datasets and small components that only a bundle's JSON uses: a site's images, device, parameters, model path."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
