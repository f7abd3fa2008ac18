"""Privacy attacks on a run of your own, one per file: ``samfed audit RUN --attack``."""

from .audit import ATTACKS, Options, run_audit
from .finding import Finding, Shown
from .target import Images, Target, target_of_run

__all__ = ["ATTACKS", "Finding", "Images", "Options", "Shown", "Target", "run_audit", "target_of_run"]
