"""Options of methods: values in range are accepted, others are refused by name and all together."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from torch import nn

from samfed_monai.core.errors import Refused
from tests.handlers.toy import Shown

# accepted and refused values
NOT_NEGATIVE, POSITIVE = ([0, 0.5], [-0.1, "1"]), ([0.1], [0, True])
FROM_0_TO_1, BELOW_1, BETWEEN = ([0, 1], [-0.1, 1.1]), ([0, 0.9], [-0.1, 1]), ([0.1, 0.9], [0, 1, "half", None])
UP_TO_1 = ([0.1, 1], [0, 1.1])
COUNT_OR_0, COUNT, SWITCH = ([0], [-1, 0.5]), ([1], [0, 1.5, True]), ([True], [1, "yes"])
SCHEDULE = (["gaussian_ramp"], ["later"])
ALGORITHM: dict[str, Any] = {"network": nn.Linear(1, 1), "optimizer": None}

#: Class to its options.
OPTIONS: dict[str, dict[str, tuple[list[Any], list[Any]]]] = {
    "apple.AppleAlgorithm": {"mu": NOT_NEGATIVE, "rate": NOT_NEGATIVE, "fraction": FROM_0_TO_1, "keep_sum": SWITCH},
    "clustered_sites.ClusteredFedAvg": {"clusters": COUNT, "least": COUNT, "levels": ([2, 32], [1, 33])},
    "cpss.StyleSwapTerm": {"tau": FROM_0_TO_1, "side": COUNT, "stride": COUNT, "label_schedule": SCHEDULE},
    "drflm.DistributionallyRobust": {"step": NOT_NEGATIVE},
    "drflm.LocalMixUpTerm": {"tau": FROM_0_TO_1, "alpha": POSITIVE},
    "elcfs.EpisodicTerm": {
        **{"inner": NOT_NEGATIVE, "gamma": NOT_NEGATIVE, "clip": POSITIVE, "temperature": POSITIVE},
        **{"tau": FROM_0_TO_1, "label_schedule": SCHEDULE},
    },
    "elcfs.SpectrumWindows": {"entries": COUNT, "half": COUNT_OR_0},
    "elcfs.StyleExchange": {"entries": COUNT, "half": COUNT_OR_0},
    "fca.ClientTailored": {"threshold": ([-1, 1], [-1.1, 1.1]), "patterns": ([["a"], None], ["a"])},
    "fedala.AdaptiveMixing": {
        "upper": UP_TO_1,
        "rate": NOT_NEGATIVE,
        "batches": COUNT_OR_0,
        "first_batches": COUNT_OR_0,
    },
    "fedca.ContrastBeforeLabels": {"rounds": COUNT_OR_0, "entries": COUNT, "share": ([False], [0, "no"])},
    "fedca.SharedFeatures": {"entries": COUNT},
    "fedca.ContrastiveTerm": {
        "rounds": COUNT_OR_0,
        "queue": COUNT,
        "temperature": POSITIVE,
        "decay": BELOW_1,
        "alignment": NOT_NEGATIVE,
    },
    "fedda.DomainAlignmentTerm": {"rate": POSITIVE},
    "fedgin.IntensityViewd": {"most": FROM_0_TO_1, "layers": COUNT, "width": COUNT},
    "fedicra.DecoderMixing": {"after": COUNT_OR_0, "rate": NOT_NEGATIVE},
    "fedicra.HeadThenBody": {"share": BETWEEN},
    "fedicra.TreeEnergyTerm": {"sigma": POSITIVE, "step": COUNT},
    "fedmd.Consensus": {"average": (["probabilities", "scores"], ["logits"])},
    "fedproto.PrototypeTerm": {"weight": NOT_NEGATIVE, "tau": ([0.5, 0.9], [0.4, 1])},
    "fedprox.ProximalTerm": {"mu": NOT_NEGATIVE},
    "fedrep.AlternatingParts": {"share": BETWEEN},
    "fedsemidg.DropoutAlignmentTerm": {"drop": BELOW_1},
    "fedsemidg.DualGuideTerm": {"memory": BELOW_1},
    "fedsemidg.GapMeter": {"batches": COUNT},
    "fedsemidg.GeneralisationAware": {"step": NOT_NEGATIVE},
    "heterogeneous.CondensationFusion": {"exchange": (["predictions", "weights"], ["none"]), "floor": BELOW_1},
    "heterogeneous.PublicDistillationTerm": {
        "weight": NOT_NEGATIVE,
        "temperature": POSITIVE,
        "convention": (["ours", "hssf"], ["theirs"]),
    },
    "hssf.LsslTerm": {
        **{"flip_below": FROM_0_TO_1, "least_mean": FROM_0_TO_1, "feature_dropout": FROM_0_TO_1},
        **{"cross_entropy": NOT_NEGATIVE, "consistency": NOT_NEGATIVE},
    },
    "krum.Krum": {"faulty": COUNT, "keep": ([1, None], [0, 2.0])},
    "norm_clipping.NormClipping": {"factor": ([0.1], [0, True, float("inf"), "2"]), "window": COUNT},
    "pfedsam.DecoupledStages": {"share": ([0, 1], [-0.1, 1.5, "half", True])},
    "pfedsam.MutualDistillationTerm": {"temperature": POSITIVE},
    "see.RefinedLabelTerm": {
        **{"split": (["labelled", "unlabelled"], ["all"]), "views": ([1, 2, 4, 8], [3]), "every": COUNT},
        **{"absolute": UP_TO_1, "relative": UP_TO_1, "sam_size": ([64, 512], [500])},
    },
    "semifl.MixUpTerm": {"tau": FROM_0_TO_1, "alpha": POSITIVE},
    "trimmed_mean.TrimmedMean": {"trim": ([0.1, 0.49], [0, 0.5, True, "0.25"])},
    "unimatch.UniMatchTerm": {"tau": FROM_0_TO_1, "strong": NOT_NEGATIVE, "features": NOT_NEGATIVE, "drop": BELOW_1},
    "weak_labels.GatedCrfTerm": {"radius": COUNT, "step": COUNT, "sigma_xy": POSITIVE, "sigma_rgb": POSITIVE},
}
NETWORK: dict[str, Any] = {"network": Shown()}
#: Other required arguments by class.
NEEDED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("elcfs.EpisodicTerm", "fedicra.TreeEnergyTerm", "fedproto.PrototypeTerm"), NETWORK),
    **dict.fromkeys(("apple.AppleAlgorithm", "fedala.AdaptiveMixing"), ALGORITHM),
    "elcfs.SpectrumWindows": {"data": None, "transform": None, "term": None},
    "fedca.SharedFeatures": {"network": None, "term": None, "data": None, "transform": None},
    "fedda.DomainAlignmentTerm": {"guide": None},
    "fedicra.DecoderMixing": {**ALGORITHM, "decoder": ["weight"]},
    "fedicra.HeadThenBody": {"algorithm": None},
    "fedrep.AlternatingParts": {"personal": ["head.*"]},
    "fedsemidg.DropoutAlignmentTerm": NETWORK,
    "fedsemidg.GapMeter": {"loader": [], "guide": None},
    "see.RefinedLabelTerm": {"data": None, "transform": None},
}


def module_of(target: str) -> str:
    return f"samfed_monai.methods.{target.partition('.')[0]}"


@pytest.mark.parametrize("target", [target for target in OPTIONS if find_spec(module_of(target))])
def test_options_accept_only_values_in_range(target: str) -> None:
    kind = getattr(import_module(module_of(target)), target.partition(".")[2])
    needed, options = NEEDED.get(target, {}), OPTIONS[target]
    for name, (accepted, refused) in options.items():
        for value in accepted:
            kind(**needed, **{name: value})
        for value in refused:
            with pytest.raises(Refused) as caught:
                kind(**needed, **{name: value})
            (problem,) = caught.value.problems
            assert problem.where.endswith((f"#{name}", f"-> {name}", "#weight")), problem
            assert problem.found == repr(value)
    with pytest.raises(Refused) as caught:
        kind(**needed, **{name: refused[0] for name, (_, refused) in options.items()})
    assert len(caught.value.problems) == len(options)
