"""Attacks on what a federation gives away, one a file, against one's own run: ``samfed audit RUN --attack``."""

from .finding import Finding, Options, Shown
from .target import Images, Target

__all__ = ["Finding", "Images", "Options", "Shown", "Target"]
