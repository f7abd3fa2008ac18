"""What may leave a site: an allow-list, withheld small counts, optional noise, and an audit line for every message."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
