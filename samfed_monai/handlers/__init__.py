"""Ignite handlers: guides, terms, the unlabelled stream, rounds, records, scores, models and masks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
