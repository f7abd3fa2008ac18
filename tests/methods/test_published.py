"""Numbers of methods: those of their papers and of their authors' code, and ours where those have none.

Each is what a run has that sets nothing itself: from the method's file, else the default of the class named there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pydoc import locate
from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.config.parse import join_id, walk
from samfed_monai.config.variants import methods, variant_files
from samfed_monai.core.io import read_json
from samfed_monai.federation.workflow import client_config
from tests.methods import present

# Liu et al., section 3.3, and the authors' code, whose demonstration has half 1
ELCFS = {
    "terms#episode#inner": 0.001,
    "terms#episode#temperature": 0.05,
    "strategy#half": 1,
    "statistics#half": 1,
}
# He et al.: doubtful pixels of the image, and of its foreground
SEE = {"terms#see#absolute": 0.1, "terms#see#relative": 0.5, "network_def#feature_groups": [4, 2]}
# Ma et al., text and code: least reliability of a site that the server learns from; KL at T = 2
HSSF = {"strategy#floor": 0.75, "sharing#term#temperature": 2.0}

#: [P] of docs/method.md and docs/personalised.md, and where a docstring says that a number is the authors'.
PUBLISHED: dict[str, dict[str, Any]] = {
    "apple": {  # the authors' code
        "sharing#mu": 0.1,
        "sharing#rate": 0.001,
        "sharing#momentum": 0.9,
        "sharing#fraction": 0.1,
    },
    "elcfs": ELCFS,
    "elcfs_labelled": ELCFS,
    "fedala": {"sharing#rate": 1.0},  # the authors' code
    "fedgin": {  # GIN: Ouyang et al., section III-B
        "strong_view#layers": 4,
        "strong_view#width": 2,
    },
    "fedicra": {  # the authors' code
        "sharing#rate": 1.0,
        "sharing#after": 2,
        "sharing#decoder": None,
        "before#parts#share": 0.85,
        "terms#tree#sigma": 0.02,
        "terms#tree#weight": 0.1,
        "terms#crf#weight": 0.1,
        "terms#sites#weight": 0.5,
    },
    "fedsemidg": {  # the authors' code: GAA, DR with the average that is one of its guides, and the alignment
        "strategy#step": 0.05,
        "terms#dual_guide#start": 0.15,
        "terms#dual_guide#end": 0.3,
        "terms#dual_guide#first": "global",
        "terms#dual_guide#second": "ema",
        "guides#ema#decay": 0.99,
        "terms#alignment#drop": 0.3,
        "terms#alignment#weight": 0.3,
    },
    "heterogeneous": HSSF,
    "hssf": HSSF,
    "hssf_compat": {  # the authors' code
        "batch_size": 4,
        "learning_rate": 0.0001,
        "optimizer#weight_decay": 0.02,
        "warm_start#optimizer#weight_decay": 0.02,
        "before#learning_rate#schedule": "cosine",
        "before#learning_rate#floor": 0.01,
        "before#learning_rate#part": 0.25,
        "weak_view#rotate": 90.0,
        "weak_view#shift": 0.125,
        "strong_view#deviation": 0.05,
        "strong_view#limit": 0.1,
        "loss#weighted_entropy": False,
        "terms#lssl#flip_below": 0.3,
        "terms#lssl#least_mean": 0.75,
        "terms#lssl#feature_dropout": 0.5,
        "terms#lssl#cross_entropy": 1.0,
        "terms#lssl#consistency": 1.0,
        "strategy#floor": 0.75,
        "sharing#reliability": "pixel_accuracy",
        "sharing#passes": 4,
        "sharing#term#handlers#0#weight": 4.0,
        "sharing#term#handlers#1#weight": 10.0,
        "sharing#term#handlers#1#temperature": 2.0,
        "sharing#term#handlers#1#convention": "hssf",
    },
    "pfedsam": {
        "network_def#top": 2,  # docs/personalised.md
        "terms#load_balance#weight": 0.01,  # Switch Transformers
    },
    "see": SEE,
    "see_few": SEE,
    "semifl": {  # arXiv 2106.01432
        "agreement#tau": 0.95,
        "terms#mixup#tau": 0.95,
        "terms#mixup#alpha": 0.75,
    },
    "unimatch": {  # arXiv 2208.09910: a half for both strong views, a half for the features
        "terms#unimatch#tau": 0.95,
        "terms#unimatch#drop": 0.5,
        "terms#unimatch#strong": 0.5,
        "terms#unimatch#features": 0.5,
    },
    "weak_labels": {  # the gated CRF as FedICRA's code has it
        "terms#crf#radius": 5,
        "terms#crf#sigma_xy": 6.0,
        "terms#crf#sigma_rgb": 0.1,
        "terms#crf#weight": 0.1,
    },
}

#: [I] there, or without a source: what our results were measured with.
OURS: dict[str, dict[str, Any]] = {
    "cpss": {"terms#style_swap#tau": 0.9, "terms#style_swap#side": 2, "terms#style_swap#stride": 4},
    "ditto": {"terms#ditto#mu": 0.1},
    "drflm": {"strategy#step": 0.1, "terms#local_mixup#alpha": 0.2},
    "elcfs": {"terms#episode#gamma": 0.1, "strategy#entries": 4},
    "fca": {"strategy#threshold": 0.0},
    "fedala": {"sharing#upper": 0.25, "sharing#batches": 4, "sharing#first_batches": 16},
    "fedca": {
        "terms#contrast#rounds": 3,
        "terms#contrast#queue": 256,
        "terms#contrast#temperature": 0.1,
        "terms#contrast#decay": 0.99,
        "terms#contrast#alignment": 1.0,
        "strategy#share": True,
        "strategy#entries": 16,
    },
    "fedda": {"terms#domain#weight": 0.01, "terms#domain#rate": 0.0001},
    "fedgin": {"strong_view#most": 1.0},
    "fedicra": {"sharing#batches": 4, "sharing#first_batches": 16, "terms#tree#step": 2},
    "fedproto": {"terms#prototype#tau": 0.9, "terms#prototype#weight": 1.0},
    "fedprox": {"terms#proximal#mu": 0.01},
    "fedrep": {"before#parts#share": 0.5},
    "fedsemidg": {"after#gap#batches": 4, "terms#dual_guide#memory": 0.9},
    "heterogeneous": {"sharing#term#weight": 1.0, "terms#sam_kd#weight": 0.25},
    "hssf": {"sharing#term#weight": 1.0},
    "mean_teacher": {"terms#consistency#weight": 10.0},
    "no_sam": {"agreement#tau": 0.9, "terms#pseudo_label#fraction": 0.4},
    "pfedsam": {
        "network_def#experts": 4,
        "network_def#expert_rank": 4,
        "network_def#rank": 4,
    },
    "pfedsam_two_stage": {
        "before#stages#share": 0.5,
        "terms#mutual#temperature": 2.0,
        "terms#mutual#weight": 0.5,
    },
    "see": {"terms#see#views": 4, "terms#see#every": 1},
    "clustered_sites": {"strategy#clusters": 2, "strategy#least": 2, "strategy#levels": 8},
    "weak_labels": {"terms#crf#step": 2},
}


def in_force(variant: str, names: list[str]) -> dict[str, Any]:
    """What a run of the variant has at these ids."""
    config = client_config(find_bundle("samfed_skin"), variant, {})
    parser = config.parser()
    return {name: config.value(name) if name in parser else default(parser, name) for name in names}


def default(parser: Any, name: str) -> Any:
    """What a class takes for an argument that its file leaves out."""
    place, _, argument = name.rpartition("#")
    target = parser[f"{place}#_target_"]
    if target == "samfed_monai.networks.client_network":
        target = "samfed_monai.networks.sam.network.SamNetwork"
    return inspect.signature(locate(target)).parameters[argument].default  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", present(*sorted({*PUBLISHED, *OURS})))
def test_a_run_that_sets_nothing_has_the_numbers_of_the_method(variant):
    wanted = {**PUBLISHED.get(variant, {}), **OURS.get(variant, {})}
    assert in_force(variant, list(wanted)) == wanted


#: Where a method's file says something else than its class does alone: a name, what the method is, or its speed.
DEPARTS = {
    ("ditto", "terms#ditto#name"),
    ("fca", "strategy#patterns"),  # of the adapter, which its network has
    ("fedca", "terms#contrast#alone"),
    ("fedca", "terms#contrast#weight"),  # that of a term beside others
    ("fedicra", "terms#tree#step"),
    ("hssf_compat", "sharing#term#handlers#1#convention"),
    ("hssf_compat", "sharing#term#handlers#1#weight"),
    ("mean_teacher", "terms#consistency#weight"),
    ("pfedsam", "before#stages#both"),
    ("see_few", "terms#see#split"),
    ("weak_labels", "terms#crf#step"),
}


@pytest.mark.parametrize("variant", methods())
def test_a_class_of_a_method_has_the_numbers_of_its_file_for_defaults(variant):
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
    """Components of a method's file with their ids, those whose arguments have ids of their own as well."""
    yield from (
        (join_id(parts), each) for parts, each in walk(content) if isinstance(each, dict) and "_target_" in each
    )
    for name in content:
        if name.endswith("#_target_"):
            place = name.removesuffix("_target_")
            own = {key.removeprefix(place): value for key, value in content.items() if key.startswith(place)}
            yield place.removesuffix("#"), own
