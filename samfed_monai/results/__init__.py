"""``results.json``: schema, check and assembly. The federation writes it, reports read it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
