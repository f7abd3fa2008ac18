"""``samfed audit``: what left a site, as a table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from samfed_monai.core.errors import ExitCode

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_audit_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds ``audit``."""
    parser = subparsers.add_parser(
        "audit",
        help="show what left a site, message by message",
        description="Shows a site's audit file: one row for every message that left it or was held back, and the sums.",
        epilog="for instance: samfed audit runs/first/sites/site-1/audit.jsonl",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="audit.jsonl in the site's folder of a run")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the table."""
    from samfed_monai.federation.privacy.audit import audit_table, read_audit

    sys.stdout.write(audit_table(read_audit(arguments.file)) + "\n")
    return int(ExitCode.DONE)
