"""Prints bytes per round by SAM and variant, computed from shapes without allocating weights.

``--write`` also updates the table in docs/personalised.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write_between
from pfedsam import TITLES

from samfed_monai.networks import SamNetwork, build_sam
from samfed_monai.protocol import Kind, Message, wire_size

PAGE = Path(__file__).resolve().parent.parent / "docs" / "personalised.md"
MARKS = ("<!-- bytes: written by benchmarks/sam_bytes.py -->", "<!-- end of bytes -->")
#: Overrides of ``network_def`` in each variant's file.
VARIANTS: dict[str, dict[str, Any]] = {
    "pfedsam": {},
    "fedsam": {"experts": 0, "decoder": "shared"},
    "full_sam": {"full": True},
}


def megabytes(count: int) -> str:
    """Formats bytes as MB with three digits."""
    value = count / 1e6
    return f"{value:.2f} MB" if value < 10 else f"{value:.1f} MB" if value < 100 else f"{value:,.0f} MB"


def row(base: str, variant: str, size: int) -> str:
    """A table row: bytes that a site sends and receives per round without scores, and before the first round."""
    with torch.device("meta"):
        network = SamNetwork(build_sam(base, size=size), size, **VARIANTS[variant])
    split, state = network.key_split(), network.state_dict()
    model, kept = (
        wire_size(Message(Kind.WEIGHTS, "site-1", 0, 1, tensors={name: state[name] for name in names}))
        for names in (split.shared, split.personal)
    )
    before = megabytes(kept) if split.personal else "nothing"
    return f"| {TITLES[base]} | `{variant}` | {megabytes(model)} | {megabytes(model)} | {before} |"


def table(bases: list[str], size: int) -> str:
    """The table in Markdown."""
    head = ["| SAM | variant | up | down | once, before round 0 |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(row(base, variant, size) for base in bases for variant in VARIANTS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--size", type=int, default=256, help="size of SAM's input in pixels")
    parser.add_argument("--write", action="store_true", help=f"update the table in {PAGE.name}")
    options = parser.parse_args()
    text = table(options.bases, options.size)
    print(text)
    if options.write:
        write_between(PAGE, MARKS, f"\n{text}\n")


if __name__ == "__main__":
    main()
