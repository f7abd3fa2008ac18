"""What every bundle's JSON names and none changes: where images come from, in which form engines take them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
