"""Statistics of images at the release filter: which kinds may leave, and under which rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from samfed_monai.config.method import Method
from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.privacy import (
    Allowed,
    Privacy,
    ReleaseFilter,
    audit_table,
    privacy_account,
    read_audit,
    require_possible,
    unsent_rules,
)
from samfed_monai.privacy.rules import PrivacyFloor
from samfed_monai.protocol import Kind, Message, MessageRefused, Statistic, StatisticKind, StatisticRule, Task
from samfed_monai.protocol.statistics import with_statistics

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
OWN = {"windows": torch.tensor([[3.0, 4.0], [0.0, 0.5]])}
METHOD = Method("styles", leaves_site=("weights", "scores", "spectrum"), where="styles.json -> _method#leaves_site")
SPECTRUM = StatisticKind.SPECTRUM


class Windows(Statistic):
    kind = SPECTRUM

    def __init__(self, images: int = 9) -> None:
        self.count = images

    def like(self):
        return {"windows": torch.zeros(2, 2)}

    def images(self, least_images: int) -> int:
        self.least_images = least_images
        return self.count

    def measured(self, least_images: int):
        return OWN


class Styles(FedAvg):
    statistic = SPECTRUM


def request(**extra: str) -> Message:
    return Message(Kind.WEIGHTS, "Basel", 0, 3, 7, extra=extra)


QUERY = request(statistics="spectrum")


def reply(statistics=OWN, **fields) -> Message:
    answer = Message(Kind.WEIGHTS, "Basel", 0, 3, 7, n=40, tensors=with_statistics(WEIGHTS, statistics))
    return replace(answer, **fields)


def gate(rules=None, *, measured: Statistic | None = None, method: Method | None = METHOD, **options) -> ReleaseFilter:
    allowed = Allowed({Kind.WEIGHTS: WEIGHTS}, statistic=measured or Windows())
    privacy = Privacy.from_json({"statistics": rules})
    return ReleaseFilter("Basel", allowed=lambda: allowed, privacy=privacy, method=method, noise=np.ones, **options)


def test_declared_statistic_is_sent_with_audit_line(tmp_path):
    answer = reply()
    assert gate(folder=tmp_path)(Task.TRAIN, QUERY, answer) is answer
    plain = reply({})
    assert gate(folder=tmp_path)(Task.TRAIN, request(), plain) is plain
    measured = Windows(6)
    six = gate({"spectrum": {"least_images": 6}}, measured=measured)
    assert six(Task.TRAIN, QUERY, answer) is answer, "as many images as are asked for"
    assert measured.least_images == 6
    line, without = read_audit(tmp_path / "audit.jsonl")
    assert "statistics" not in without
    assert line["statistics"] == {"kind": "spectrum", "images": 9, "clip": None, "noise_multiplier": 0.0}
    assert (line["tensors"], line["noise"]) == (2, None)
    assert "spectrum of 9 images" in audit_table([line])


def test_statistic_is_clipped_and_noise_is_counted(tmp_path):
    rules = {"spectrum": {"clip": 1.0, "noise_multiplier": 0.5}}
    sent = gate(rules, folder=tmp_path)(Task.TRAIN, QUERY, reply())
    deviation = 2**0.5
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.5]]) + deviation
    torch.testing.assert_close(sent.tensors["statistics.windows"], expected)
    assert sent.tensors["w"] is WEIGHTS["w"]
    assert sent.metrics == {"releases": 1}
    (line,) = read_audit(tmp_path / "audit.jsonl")
    assert line["noise"]["deviation"] == pytest.approx(deviation)
    assert gate(rules, folder=tmp_path)(Task.TRAIN, QUERY, reply()).metrics == {"releases": 2}, "over restarts"


@pytest.mark.parametrize(
    ("received", "options", "given", "message"),
    [
        (request(), {}, OWN, "found a statistic that was not requested"),
        (request(statistics="graph"), {}, OWN, "found a kind that this site does not measure"),
        (QUERY, {}, {"windows": torch.zeros(3, 2)}, r"windows: expected shape \(2, 2\), found another sh"),
        (QUERY, {}, {"windows": OWN["windows"].double()}, "windows: expected torch.float32, found another dtype"),
        (QUERY, {}, {"images": torch.zeros(2, 2)}, r"statistics: expected only the 1 tensors .*, found 1 in addition"),
        (QUERY, {}, {"windows": torch.full((2, 2), float("inf"))}, "NaN or infinity"),
        (QUERY, {"measured": Windows(4)}, OWN, "expected entries from at least 5 images each, found fewer"),
        (QUERY, {"rules": {"spectrum": {"least_images": 10}}}, OWN, "10 images each, found fewer; merge with another"),
        (
            QUERY,
            {"rules": {"spectrum": None}},
            OWN,
            "privacy#statistics#spectrum: expected a method that sends none, found amplitude-spectrum windows, "
            "which the method sends and the policy forbids; choose a variant that sends none, or allow it in the plan",
        ),
        (
            QUERY,
            {"method": replace(METHOD, leaves_site=("weights", "scores"))},
            OWN,
            "- styles.json -> _method#leaves_site: expected what styles declares: weights, scores, found spectrum; add",
        ),
        (QUERY, {"method": Method("old")}, OWN, "- _method#leaves_site: expected what old declares: nothing, found sp"),
    ],
)
def test_invalid_statistics_are_refused(received, options, given, message):
    with pytest.raises(MessageRefused, match=message):
        gate(**options)(Task.TRAIN, received, reply(given))


def test_site_file_restricts_statistic_kinds():
    plan = Privacy.from_json({"statistics": {"spectrum": {"clip": 1.0}}})
    assert PrivacyFloor().tighten(plan).rule(SPECTRUM) == StatisticRule(clip=1.0, least_images=5)
    assert PrivacyFloor(20, None, (SPECTRUM,)).tighten(plan).rule(SPECTRUM) == StatisticRule(clip=1.0, least_images=20)
    none = PrivacyFloor(statistics=()).tighten(plan)
    assert [none.rule(kind) for kind in StatisticKind] == [None] * 4


def test_forbidden_statistic_is_refused_before_start():
    require_possible(Privacy(), Styles(), METHOD)
    with pytest.raises(Refused, match="expected what styles declares: weights, found spectrum"):
        require_possible(Privacy(), Styles(), replace(METHOD, leaves_site=("weights",)))
    forbidden = Privacy.from_json({"statistics": {"spectrum": None}})
    with pytest.raises(Refused, match="statistics#spectrum: expected a method that sends none"):
        require_possible(forbidden, Styles(), METHOD)
    require_possible(forbidden, FedAvg(), METHOD)


def test_statistics_rule_and_epsilon_are_in_results():
    records = [{"sites": {"a": {"releases": 2}, "b": {}, "c": {"releases": 1}}}]
    assert "statistics" not in privacy_account(Privacy(), records, {})
    quiet = privacy_account(Privacy(), records, {}, statistic=SPECTRUM)["statistics"]
    none = dict.fromkeys(("clip", "delta", "releases", "epsilon"))
    assert quiet == {"kind": "spectrum", "noise_multiplier": 0.0, "least_images": 5, **none}
    noisy = Privacy.from_json({"statistics": {"spectrum": {"clip": 1.0, "noise_multiplier": 2.0}}})
    account = privacy_account(noisy, records, {}, statistic=SPECTRUM)["statistics"]
    assert account["releases"] == {"a": 2, "b": 0, "c": 1}
    assert (account["epsilon"]["b"], account["delta"]) == (0.0, 1e-5)
    assert account["epsilon"]["c"] == pytest.approx(2.2, abs=0.05)  # docs/privacy.md
    assert 2.2 < account["epsilon"]["a"] < 2 * 2.2


def prototypes() -> Message:
    tensors = {"prototypes": torch.tensor([[3.0, 4.0]]), "counts": torch.tensor([300.0])}
    return Message(Kind.PROTOTYPES, "Basel", 0, 3, 7, n=40, tensors=tensors)


def prototype_gate(rules=None, **options) -> ReleaseFilter:
    allowed, method = Allowed({Kind.PROTOTYPES: prototypes().tensors}), Method("p", leaves_site=("prototypes",))
    privacy = Privacy.from_json({"statistics": rules})
    return ReleaseFilter("Basel", allowed=lambda: allowed, privacy=privacy, method=method, **options)


def test_prototypes_follow_statistics_policy(tmp_path):
    answer = prototypes()
    assert prototype_gate(folder=tmp_path)(Task.TRAIN, request(), answer) is answer
    assert read_audit(tmp_path / "audit.jsonl")[0]["statistics"]["images"] == 40
    clipped = prototype_gate({"prototypes": {"clip": 1.0}})(Task.TRAIN, request(), prototypes())
    torch.testing.assert_close(clipped.tensors["prototypes"], torch.tensor([[0.6, 0.8]]))
    assert clipped.tensors["counts"].item() == 300
    for rule, problem in (
        (None, "found one mean feature per class, which the method sends and the policy"),
        (
            {"least_images": 41},
            "1 problem\n  - message -> n: expected prototypes from at least 41 images, found fewer; merge",
        ),
    ):
        with pytest.raises(MessageRefused, match=problem):
            prototype_gate({"prototypes": rule})(Task.TRAIN, request(), prototypes())


def test_rules_for_unsent_kinds_are_reported():
    rules = Privacy.from_json({"statistics": {"spectrum": {"clip": 1.0}, "features": {}, "graph": None}})
    where = "federate.json -> privacy#statistics#"
    found, hint = "a rule for statistics that it does not send", "remove it, or choose a variant that sends them"
    assert [str(problem) for problem in unsent_rules(rules, Styles(), "elcfs")] == [
        f"{where}features: expected a rule for spectrum, which elcfs sends, found {found}; {hint}"
    ]
    none = "expected no rule, as drflm sends no statistics"
    assert [str(problem) for problem in unsent_rules(rules, FedAvg(), "drflm")] == [
        f"{where}{kind}: {none}, found {found}; {hint}" for kind in ("spectrum", "features")
    ]
    assert unsent_rules(Privacy(), FedAvg(), "drflm") == []
