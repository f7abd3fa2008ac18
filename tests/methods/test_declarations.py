"""Declarations of methods match their strategies, data and files.

Numbers are those of papers and of their authors' code, and ours where those have none. Each is what a run has that sets
nothing itself: from the method's file, else the default of the class named there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pydoc import locate
from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.config.parse import MISSING, BundleConfig, join_id, walk
from samfed_monai.config.variants import known_variants, methods, resolved_method, variant_files
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList
from samfed_monai.federation.participants import Participants
from samfed_monai.federation.workflow import client_config
from samfed_monai.protocol import Kind
from samfed_monai.reports.rows import ABLATIONS, VARIANTS
from tests.methods import present

BUNDLE = find_bundle("samfed_skin")
#: Rule and student of the agreement, and whether the distillation is weighed by it.
AGREEMENTS = {
    "samfed": ("trusted_average", "global", True),
    "confidence_selection": ("confidence", "weak", True),
    "no_agreement": ("teacher", "strong", False),
}
SOFT, HARD, SELF = ("soft", "constant"), ("hard", "constant"), ("hard", "gaussian_ramp")
#: Labels are soft if they come from elsewhere, and hard and ramped if they are a site's own.
LABELS = {
    **{"samfed": SOFT, "self_training": SOFT, "heterogeneous": SOFT, "oracle": SOFT, "semifl": HARD},
    **{"no_sam": SELF, "fedprox": SELF, "hssf": SELF},
}
#: Terms and guides that are on, of methods without a SAM.
TERMS = {
    "mean_teacher": ({"consistency"}, {"ema"}),
    "unimatch": ({"unimatch"}, set()),
    "fedprox": ({"pseudo_label", "proximal"}, set()),
    "self_training": ({"pseudo_label", "global_kd"}, {"global"}),
    "semifl": ({"pseudo_label", "mixup"}, {"global"}),
}


@pytest.mark.parametrize("name", known_variants())
def test_method_declaration_matches_strategy_and_data(name: str) -> None:
    method, choices = resolved_method(BUNDLE, name), {"a": {}, "b": {}}
    participants = Participants(client_config(BUNDLE, name, {}), DataList("", []), choices=choices, unseen=())
    if method.leaves_site:  # else it is of one site alone, and no federation
        assert participants.strategy.exchange.word == method.exchange
    kind, alike = participants.strategy.exchange.answer, participants.strategy.exchange.alike
    unused = BundleConfig.of_workflow(BUNDLE, "federate", {"variant": name}).used["job"]["update_guard"]
    assert (unused is MISSING or unused["limit"] is MISSING) == (kind is not Kind.WEIGHTS or not alike)
    own_labels = participants.supervised or participants.config.optional("oracle") is True
    assert own_labels == (method.labels in ("masks", "weak"))
    assert bool(participants.config.optional("images#weak_labels")) == (method.labels == "weak")


def test_methods_have_unique_ordered_table_positions() -> None:
    by_place: dict[int, str] = {}
    for method in methods().values():
        assert by_place.setdefault(method.place, method.name) == method.name
    order = list(methods())
    for one, other in (("elcfs", "fedca"), ("fedca", "see_few"), ("elcfs_labelled", "fedicra"), ("fedicra", "see")):
        assert order.index(other) == order.index(one) + 1


@pytest.mark.parametrize("variant", present(*AGREEMENTS))
def test_agreement_variants_have_declared_rule_and_factor(variant: str) -> None:
    content = client_config(BUNDLE, variant, {}).content()
    agreement = content["agreement"]
    assert (agreement["rule"], agreement["student"], content["terms"]["sam_kd"]["adaptive"]) == AGREEMENTS[variant]
    assert variant == "samfed" or variant in ABLATIONS
    assert ("without agreement" in VARIANTS[variant]) is (variant == "no_agreement")


@pytest.mark.parametrize("variant", present(*LABELS))
def test_pseudo_label_type_matches_variant(variant: str) -> None:
    term = client_config(BUNDLE.parent / "samfed_polyp", variant, {}).content()["terms"]["pseudo_label"]
    assert (term["labels"], term["schedule"], term["loss"]) == (*LABELS[variant], "structure")


@pytest.mark.parametrize("variant", present(*TERMS))
def test_baseline_enables_only_declared_terms_and_guides(variant: str) -> None:
    content = client_config(BUNDLE, variant, {}).content()
    on = [{name for name, part in content[kind].items() if not part.get("_disabled_")} for kind in ("terms", "guides")]
    assert (*on, content["teacher_adapt"]) == (*TERMS[variant], "off")


#: Method to component to numbers: [P] of docs/method.md and docs/personalised.md, what docs/methods.md has as
#: published, and where a docstring says that a number is the authors'.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "apple": {"client_algorithm": {"mu": 0.1, "rate": 0.001, "fraction": 0.1}},  # the authors' code
    "elcfs": {  # Liu et al., section 3.3, and the authors' code; its demonstration has half 1
        "terms#episode": {"inner": 0.001, "temperature": 0.05},
        "strategy": {"half": 1},
        "statistics": {"half": 1},
    },
    "fedala": {"client_algorithm": {"rate": 1.0}},  # the authors' code
    "fedgin": {"strong_view": {"layers": 4, "width": 2}},  # GIN: Ouyang et al., section III-B
    "fedicra": {  # the authors' code
        "client_algorithm": {"rate": 1.0, "after": 2, "decoder": None},
        "before#parts": {"share": 0.85},
        "terms#tree": {"sigma": 0.02, "weight": 0.1},
        "terms#crf": {"weight": 0.1},
        "terms#sites": {"weight": 0.5},
    },
    "fedsemidg": {  # the authors' code: GAA, DR with the average that is one of its guides, and the alignment
        "strategy": {"step": 0.05},
        "terms#dual_guide": {"start": 0.15, "end": 0.3, "first": "global", "second": "ema"},
        "guides#ema": {"decay": 0.99},
        "terms#alignment": {"drop": 0.3, "weight": 0.3},
    },
    # Ma et al., text and code: least reliability of a site that the server learns from; KL at T = 2
    "hssf": {"strategy": {"floor": 0.75}, "client_algorithm#term": {"temperature": 2.0}},
    "hssf_compat": {  # the authors' code
        "optimizer": {"lr": 0.0001, "weight_decay": 0.02},
        "warm_start#optimizer": {"weight_decay": 0.02},
        "train#dataloader": {"batch_size": 4},
        "before#learning_rate": {"schedule": "cosine", "floor": 0.01, "part": 0.25},
        "weak_view": {"rotate": 90.0, "shift": 0.125},
        "strong_view": {"deviation": 0.05, "limit": 0.1},
        "loss": {"weighted_entropy": False},
        "terms#lssl": {
            "flip_below": 0.3,
            "least_mean": 0.75,
            "feature_dropout": 0.5,
            "cross_entropy": 1.0,
            "consistency": 1.0,
        },
        "strategy": {"floor": 0.75},
        "client_algorithm": {"reliability": "pixel_accuracy", "passes": 4},
        "client_algorithm#term#handlers#0": {"weight": 4.0},
        "client_algorithm#term#handlers#1": {"weight": 10.0, "temperature": 2.0, "convention": "hssf"},
    },
    # docs/personalised.md; Switch Transformers
    "pfedsam": {"network_def": {"top": 2}, "terms#load_balance": {"weight": 0.01}},
    # He et al.: doubtful pixels of the image, and of its foreground
    "see": {"terms#see": {"absolute": 0.1, "relative": 0.5}, "network_def": {"feature_groups": [4, 2]}},
    "semifl": {"agreement": {"tau": 0.95}, "terms#mixup": {"tau": 0.95, "alpha": 0.75}},  # arXiv 2106.01432
    # arXiv 2208.09910: a half for both strong views, a half for the features
    "unimatch": {"terms#unimatch": {"tau": 0.95, "drop": 0.5, "strong": 0.5, "features": 0.5}},
    # the gated CRF as FedICRA's code has it
    "weak_labels": {"terms#crf": {"radius": 5, "sigma_xy": 6.0, "sigma_rgb": 0.1, "weight": 0.1}},
}
PUBLISHED |= {more: PUBLISHED[name] for more, name in (("elcfs_labelled", "elcfs"), ("see_few", "see"))}
PUBLISHED["heterogeneous"] = PUBLISHED["hssf"]

#: [I] there, or without a source: what our results were measured with.
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "clustered_sites": {"strategy": {"clusters": 2, "least": 2, "levels": 8}},
    "cpss": {"terms#style_swap": {"tau": 0.9, "side": 2, "stride": 4}},
    "ditto": {"terms#ditto": {"mu": 0.1}},
    "drflm": {"strategy": {"step": 0.1}, "terms#local_mixup": {"alpha": 0.2}},
    "elcfs": {"terms#episode": {"gamma": 0.1}, "strategy": {"entries": 4}},
    "fca": {"strategy": {"threshold": 0.0}},
    "fedala": {"client_algorithm": {"upper": 0.25, "batches": 4, "first_batches": 16}},
    "fedca": {
        "terms#contrast": {"rounds": 3, "queue": 256, "temperature": 0.1, "decay": 0.99, "alignment": 1.0},
        "strategy": {"share": True, "entries": 16},
    },
    "fedda": {"terms#domain": {"weight": 0.01, "rate": 0.0001}},
    "fedgin": {"strong_view": {"most": 1.0}},
    "fedicra": {"client_algorithm": {"batches": 4, "first_batches": 16}, "terms#tree": {"step": 2}},
    "fedproto": {"terms#prototype": {"tau": 0.9, "weight": 1.0}},
    "fedprox": {"terms#proximal": {"mu": 0.01}},
    "fedrep": {"before#parts": {"share": 0.5}},
    "fedsemidg": {"after#gap": {"batches": 4}, "terms#dual_guide": {"memory": 0.9}},
    "heterogeneous": {"client_algorithm#term": {"weight": 1.0}, "terms#sam_kd": {"weight": 0.25}},
    "hssf": {"client_algorithm#term": {"weight": 1.0}},
    "mean_teacher": {"terms#consistency": {"weight": 10.0}},
    "no_sam": {"agreement": {"tau": 0.9}, "terms#pseudo_label": {"fraction": 0.4}},
    "pfedsam": {"network_def": {"experts": 4, "expert_rank": 4, "rank": 4}},
    "pfedsam_two_stage": {"before#stages": {"share": 0.5}, "terms#mutual": {"temperature": 2.0, "weight": 0.5}},
    "see": {"terms#see": {"views": 4, "every": 1}},
    "weak_labels": {"terms#crf": {"step": 2}},
}


def default(parser: Any, name: str) -> Any:
    """What a class takes for an argument that its file leaves out."""
    place, _, argument = name.rpartition("#")
    target = parser[f"{place}#_target_"]
    if target == "samfed_monai.networks.client_network":
        target = "samfed_monai.networks.sam.network.SamNetwork"
    return inspect.signature(locate(target)).parameters[argument].default  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", present(*sorted({*PUBLISHED, *OURS})))
def test_default_config_has_documented_values(variant):
    tables = (PUBLISHED.get(variant, {}), OURS.get(variant, {}))
    wanted = {f"{at}#{name}": value for table in tables for at, own in table.items() for name, value in own.items()}
    config = client_config(BUNDLE, variant, {})
    parser = config.parser()
    assert {name: config.value(name) if name in parser else default(parser, name) for name in wanted} == wanted


#: Where a method's file says something else than its class does alone: a name, what the method is, or its speed.
DEPARTS = {
    ("ditto", "terms#ditto#name"),
    ("fca", "strategy#patterns"),  # of the adapter, which its network has
    ("fedca", "terms#contrast#alone"),
    ("fedca", "terms#contrast#weight"),  # that of a term beside others
    ("fedicra", "terms#tree#step"),
    ("hssf_compat", "client_algorithm#term#handlers#1#convention"),
    ("hssf_compat", "client_algorithm#term#handlers#1#weight"),
    ("mean_teacher", "terms#consistency#weight"),
    ("pfedsam", "before#stages#both"),
    ("see_few", "terms#see#split"),
    ("weak_labels", "terms#crf#step"),
}


@pytest.mark.parametrize("variant", methods())
def test_class_defaults_match_method_file(variant):
    found = set()
    for place, component in components(read_json(variant_files(None, variant)[-1])):
        if not component["_target_"].startswith("samfed_monai.methods."):
            continue
        parameters = inspect.signature(locate(component["_target_"])).parameters  # type: ignore[arg-type]
        for name, value in component.items():
            plain = not isinstance(value, dict) and not str(value).startswith(("@", "$"))
            known = parameters[name].default if name in parameters else inspect.Parameter.empty
            if plain and known not in (inspect.Parameter.empty, value):
                found.add((variant, f"{place}#{name}"))
    assert found == {each for each in DEPARTS if each[0] == variant}


def components(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Components of a method's file with their ids, and their arguments that have ids of their own."""
    yield from ((join_id(parts), at) for parts, at in walk(content) if isinstance(at, dict) and "_target_" in at)
    for name in content:
        if name.endswith("#_target_"):
            place = name.removesuffix("_target_")
            own = {key.removeprefix(place): value for key, value in content.items() if key.startswith(place)}
            yield place.removesuffix("#"), own
