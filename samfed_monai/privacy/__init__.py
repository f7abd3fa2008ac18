"""Control of a site's outgoing data: allow-list, withheld small counts, optional noise, an audit line per message."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
