"""From images to a data list: sources, partitions, checks, the hashed list and the soft-mask store."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
