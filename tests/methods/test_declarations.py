"""What a method declares is what its strategy and its data do, and what its file says is what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.config.variants import declared, known_variants, methods
from samfed_monai.data import DataList
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.workflow import client_config
from samfed_monai.reports.rows import ABLATIONS, VARIANTS
from tests.methods import present

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "samfed_skin"
#: Rule and student of the agreement, and whether the distillation is weighed by it.
AGREEMENTS = {
    "samfed": ("trusted_average", "global", True),
    "confidence_selection": ("confidence", "weak", True),
    "no_agreement": ("teacher", "strong", False),
}
SOFT, HARD, SELF = ("soft", "constant"), ("hard", "constant"), ("hard", "gaussian_ramp")
#: Labels are soft where somebody else gives them, and hard and ramped where they are a site's own.
LABELS = {
    **{"samfed": SOFT, "heterogeneous": SOFT, "oracle": SOFT, "semifl": HARD},
    **{"no_sam": SELF, "fedprox": SELF, "hssf": SELF},
}
#: Terms and guides that are on, of methods without a SAM.
TERMS = {
    "mean_teacher": ({"consistency"}, {"ema"}),
    "unimatch": ({"unimatch"}, set()),
    "fedprox": ({"pseudo_label", "proximal"}, set()),
    "semifl": ({"pseudo_label", "mixup"}, {"global"}),
}


@pytest.mark.parametrize("name", known_variants())
def test_a_method_exchanges_and_needs_what_it_declares(name: str) -> None:
    method, choices = declared(BUNDLE, name), {"a": {}, "b": {}}
    participants = Participants(client_config(BUNDLE, name, {}), DataList("", []), choices=choices, unseen=())
    if method.leaves_site:  # else it is of one site alone, and no federation
        assert participants.exchange == method.exchange
    own_labels = participants.supervised or participants.config.optional("oracle") is True
    assert own_labels == (method.labels in ("masks", "weak"))
    assert bool(participants.config.optional("images#weak_labels")) == (method.labels == "weak")


def test_every_variant_has_a_place_of_its_own_in_tables() -> None:
    places: dict[int, str] = {}
    for method in methods().values():
        assert places.setdefault(method.place, method.name) == method.name
    order = list(methods())
    for one, other in (("elcfs", "fedca"), ("fedca", "see_few"), ("elcfs_labelled", "fedicra"), ("fedicra", "see")):
        assert order.index(other) == order.index(one) + 1


@pytest.mark.parametrize("variant", present(*AGREEMENTS))
def test_rule_and_factor_of_each_agreement(variant: str) -> None:
    content = client_config(BUNDLE, variant, {}).content()
    agreement = content["agreement"]
    assert (agreement["rule"], agreement["student"], content["terms"]["sam_kd"]["adaptive"]) == AGREEMENTS[variant]
    assert variant == "samfed" or variant in ABLATIONS
    assert ("factor g" in VARIANTS[variant]) is (variant == "no_agreement")


@pytest.mark.parametrize("variant", present(*LABELS))
def test_labels_are_soft_or_hard_by_who_gives_them(variant: str) -> None:
    term = client_config(BUNDLE.parent / "samfed_polyp", variant, {}).content()["terms"]["pseudo_label"]
    assert (term["labels"], term["schedule"], term["loss"]) == (*LABELS[variant], "structure")


@pytest.mark.parametrize("variant", present(*TERMS))
def test_a_baseline_trains_its_terms_with_its_guides_and_no_other(variant: str) -> None:
    content = client_config(BUNDLE, variant, {}).content()
    on = [{name for name, part in content[kind].items() if not part.get("_disabled_")} for kind in ("terms", "guides")]
    assert (*on, content["teacher_adapt"]) == (*TERMS[variant], "off")
