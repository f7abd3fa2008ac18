"""The teacher: SAM is fitted to the public set, evaluated, and applied to a site's images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
