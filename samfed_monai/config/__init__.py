"""The JSON of bundles: found, read strictly, and checked before anything is instantiated or evaluated."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
