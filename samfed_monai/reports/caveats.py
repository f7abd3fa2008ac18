"""What every report and table says about the method's standing, and the names of its variants."""

from __future__ import annotations

CAVEATS = (
    "This is a re-implementation of SAM-Fed (arXiv 2511.14302), whose code is not public.",
    "The agreement rule is our reading of it: the paper says that there is one, not which.",
)

TEACHER = "teacher"

VARIANTS = {
    "dp_only": "Public set only",
    TEACHER: "SAM teacher alone",
    "no_sam": "Federated, no SAM",
    "no_agreement": "SAM-Fed without agreement",
    "no_sam_kd": "SAM-Fed without SAM distillation",
    "no_global_kd": "SAM-Fed without global distillation",
    "unadapted_sam": "SAM-Fed with unadapted SAM",
    "samfed": "SAM-Fed",
    "oracle": "Oracle: sites have labels",
}
"""Variants in the order of every table, with their titles."""


def title_of(variant: str) -> str:
    """The title of a variant; an unknown one is its own title."""
    return VARIANTS.get(variant, variant)


def in_order(variants: list[str]) -> list[str]:
    """Variants as tables show them: the known ones in their order, then the others by name."""
    known = list(VARIANTS)
    return sorted(variants, key=lambda name: (known.index(name) if name in VARIANTS else len(known), name))
