"""The federation on NVIDIA FLARE: the same controller and the same sites, with FLARE between them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
