"""Attacks on what a federation gives away, one a file, against one's own run: ``samfed audit RUN --attack``."""

from .audit import ATTACKS, run_audit
from .finding import Finding, Options, Shown
from .target import Images, Target, target_of_run

__all__ = ["ATTACKS", "Finding", "Images", "Options", "Shown", "Target", "run_audit", "target_of_run"]
