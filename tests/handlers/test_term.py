"""Terms: schedules, values, records and refusals, and the agreement of teacher and student in a round."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from torch import Tensor

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import (
    SCHEDULES,
    BatchGuide,
    EndlessSampler,
    GlobalDistillationTerm,
    GlobalGuide,
    Guidance,
    PseudoLabelTerm,
    SamDistillationTerm,
    SeedHandler,
    Term,
    TermLogger,
    UnlabelledStream,
    constant,
    gaussian_ramp,
)
from samfed_monai.losses import (
    AgreementSettings,
    StructureLoss,
    agree,
    distillation_kl,
    hard_label,
    sure_agreement,
    trust_of_images,
    weighted_pseudo_label_loss,
)
from samfed_monai.transforms import StrongViewd, WeakViewd
from tests.handlers.toy import next_round, same, toy_items, toy_loader, toy_network, toy_trainer, weights


def test_gaussian_ramp_rises_to_1_at_40_percent() -> None:
    assert gaussian_ramp(0, 10) == pytest.approx(math.exp(-5))
    assert gaussian_ramp(2, 10) == pytest.approx(math.exp(-5 * 0.25))  # t = 2 / 4
    assert gaussian_ramp(4, 10) == gaussian_ramp(9, 10) == 1.0
    assert gaussian_ramp(0, 5, fraction=0.2) == pytest.approx(math.exp(-5)), "one of one round is one"
    assert gaussian_ramp(0, 1) == gaussian_ramp(0, 100, fraction=0.0) == 1.0, "shorter than a round it is no ramp"
    assert constant(0, 10) == 1.0


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 1))
def test_schedules_are_monotonic_in_0_1(name: str, rounds: int, fraction: float) -> None:
    values = [SCHEDULES[name](r, rounds, fraction) for r in range(rounds)]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)


def guidance() -> Guidance:
    generator = torch.Generator().manual_seed(0)
    weak, sam, other = (torch.rand(2, 1, 4, 4, generator=generator) for _ in range(3))
    student = torch.randn(2, 1, 4, 4, generator=generator)
    return Guidance(student=student, weak_view=weak, guides={"sam": sam, "global": other, "ema": weak.roll(1, 3)})


def engine_at(round: int, rounds: int, given: Guidance | None = None) -> Any:
    state = SimpleNamespace(round=round, rounds=rounds, iteration=1, guidance=given, output={"loss": torch.tensor(2.0)})
    return SimpleNamespace(state=state)


OUT_OF_RANGE = r"(?s)2 problems.*terms#three#weight: .*-1.*terms#three#fraction: .*1\.5"
NOT_SOFT = "terms#pseudo_label#labels: expected 'hard' with the loss dice_ce"
MISSPELT = r"(?s)3 problems.*#weight: .*#labels: .*'sotf'; did you mean 'soft'\?.*#loss: .*; did you mean 'structure'"
OF_SAM, DISTILLATION = (PseudoLabelTerm, SamDistillationTerm), (SamDistillationTerm, GlobalDistillationTerm)


class Three(Term):
    """A term of value 3 that needs nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"name": "three", "weight": 1.0, "schedule": "constant", "fraction": 0.4, **kwargs})

    def value(self, guidance: Guidance, engine: Any) -> Tensor:
        return torch.tensor(3.0)


def test_term_adds_weighted_scheduled_value_to_loss() -> None:
    engine = engine_at(2, 10, guidance())
    Three(weight=0.5, schedule="gaussian_ramp")(engine)  # half of the ramp: t = 2 / 4
    assert engine.state.output["loss"].item() == pytest.approx(2 + 0.5 * math.exp(-5 * 0.25) * 3)
    assert {name: value.item() for name, value in engine.state.terms.items()} == {"supervised": 2.0, "three": 3.0}


def test_terms_are_summed_and_records_reset_each_iteration() -> None:
    engine = engine_at(0, 1, guidance())
    Three()(engine)
    Three(name="four", weight=2.0)(engine)
    assert engine.state.output["loss"].item() == 2 + 3 + 6
    assert engine.state.terms["supervised"].item() == 2
    engine.state.iteration = 2
    Three(name="new")(engine)
    assert set(engine.state.terms) == {"supervised", "new"}


def test_pseudo_label_term_matches_agreement_loss() -> None:
    given = guidance()
    engine = engine_at(0, 1, given)
    settings = {"tau": 0.7, "delta": 0.05, "rule": "confidence"}
    PseudoLabelTerm(schedule="constant", **settings)(engine)
    agreement = agree(given.guides["sam"], given.weak, given.guides["ema"], **settings)
    expected = weighted_pseudo_label_loss(given.student, agreement.label, agreement.weight)
    torch.testing.assert_close(engine.state.terms["pseudo_label"], expected)
    torch.testing.assert_close(engine.state.terms["reliability"], agreement.reliability.mean())
    torch.testing.assert_close(engine.state.terms["agreement"], agreement.agreed.float().mean())


def test_soft_and_hard_labels_follow_deciding_side() -> None:
    given = guidance()
    agreement = agree(given.guides["sam"], given.weak, given.guides["ema"], tau=0.7, delta=0.05, rule="confidence")
    of_sam = agreement.label == hard_label(given.guides["sam"])[0]
    soft = torch.where(of_sam, given.guides["sam"], given.weak)
    assert not bool(of_sam.all())
    engine = engine_at(0, 1, given)
    term = {"rule": "confidence", "tau": 0.7, "delta": 0.05, "schedule": "constant"}
    PseudoLabelTerm(labels="soft", loss="structure", **term)(engine)
    expected = StructureLoss()(given.student, soft, agreement.weight)
    assert torch.equal(engine.state.terms["pseudo_label"], expected)
    engine = engine_at(0, 1, given)
    PseudoLabelTerm(labels="hard", loss="structure", **term)(engine)
    expected = StructureLoss()(given.student, agreement.label, agreement.weight)
    assert torch.equal(engine.state.terms["pseudo_label"], expected)


def test_custom_pseudo_label_loss_is_used() -> None:
    given, inputs = guidance(), []
    PseudoLabelTerm(loss=lambda *tensors: inputs.extend(tensors) or tensors[0].sum())(engine_at(0, 1, given))
    agreement = agree(given.guides["sam"], given.weak, given.guides["ema"])
    for found, expected in zip(inputs, (given.student, agreement.label, agreement.weight), strict=True):
        assert torch.equal(found, expected)


def test_student_can_be_strong_view_or_ema() -> None:
    given = guidance()
    engine = engine_at(0, 1, given)
    PseudoLabelTerm(student="strong", schedule="constant")(engine)
    agreement = agree(given.guides["sam"], given.student.sigmoid(), given.guides["ema"])
    assert torch.equal(engine.state.terms["agreement"], agreement.agreed.float().mean())
    assert not given.probabilities("strong", where="test").requires_grad
    found = given.agree(AgreementSettings(student="ema"), where="terms#x")
    expected = agree(given.guides["sam"], given.guides["ema"], given.weak)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.reliability, expected.reliability)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("rule", ["confidence", "average", "student", "teacher"])
def test_sam_distillation_is_weighted_by_agreement(rule: str, adaptive: bool) -> None:
    given = guidance()
    agreement = agree(given.guides["sam"], given.weak, given.guides["ema"], rule=rule)
    engine = engine_at(0, 1, given)
    SamDistillationTerm(rule=rule, adaptive=adaptive)(engine)
    weight = torch.where(agreement.label == hard_label(given.guides["sam"])[0], agreement.weight, torch.tensor(0.0))
    scale = agreement.reliability if adaptive else torch.ones(2)
    expected = distillation_kl(given.student, given.guides["sam"], 2.0, weight, scale)
    assert torch.equal(engine.state.terms["sam_kd"], expected)
    everywhere = distillation_kl(given.student, given.guides["sam"], 2.0, agreement.weight, scale)
    assert torch.equal(expected, everywhere) == (rule == "teacher")


def test_global_distillation_has_default_weight_0_1() -> None:
    given = guidance()
    engine = engine_at(0, 1, given)
    GlobalDistillationTerm()(engine)
    expected = distillation_kl(given.student, given.guides["global"], 2.0)
    torch.testing.assert_close(engine.state.output["loss"], 2.0 + 0.1 * expected)
    assert [kind(temperature=0.5).temperature for kind in DISTILLATION] == [0.5, 0.5]


def test_agreement_is_computed_once_for_equal_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("samfed_monai.handlers.guide.agree", lambda *a, **k: calls.append(k) or agree(*a, **k))
    engine = engine_at(0, 1, guidance())
    PseudoLabelTerm(rule="student")(engine)
    SamDistillationTerm(rule="student")(engine)
    assert len(calls) == 1
    SamDistillationTerm(rule="student", tau=0.8)(engine)
    assert len(calls) == 2


def test_unknown_guide_or_missing_stream_is_refused_before_first_step() -> None:
    stream = UnlabelledStream(loader=toy_loader(), guides=[BatchGuide(), GlobalGuide()])
    trainer = toy_trainer([stream, PseudoLabelTerm(teacher="sma")])
    expected = r"terms#pseudo_label: expected one of \['global', 'sam', 'strong', 'weak'\], "
    with pytest.raises(Refused, match=expected + r".*'sma'; did you mean 'sam'\?"):
        trainer.run()
    assert trainer.state.iteration == 0
    with pytest.raises(Refused, match=r"terms#sam_kd: expected an UnlabelledStream .* enable stream, or disable"):
        toy_trainer([SamDistillationTerm()]).run()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Three, {"weight": -1, "fraction": 1.5}, OUT_OF_RANGE),
        *((kind, {"rule": "teachr"}, r"terms#\w+#rule: .*did you mean 'teacher'") for kind in OF_SAM),
        *((kind, {"schedule": "constnt"}, r"terms#\w+#schedule: .*did you mean 'constant'") for kind in OF_SAM),
        *((kind, {"temperature": 0}, "temperature: expected a number > 0, found 0") for kind in DISTILLATION),
        (PseudoLabelTerm, {"labels": "soft", "loss": "dice_ce"}, NOT_SOFT),
        (PseudoLabelTerm, {"weight": -1, "labels": "sotf", "loss": "structur"}, MISSPELT),
    ],
)
def test_fault_25_invalid_arguments_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        kind(**options)


@pytest.mark.parametrize("first", ["logger", "terms"])
def test_round_means_do_not_depend_on_handler_order(first: str) -> None:
    stream = UnlabelledStream(loader=toy_loader(), guides=[BatchGuide()])
    terms = [stream, PseudoLabelTerm(schedule="constant"), Three(weight=2.0)]
    trainer = toy_trainer([TermLogger(), *terms] if first == "logger" else [*terms, TermLogger()], steps=3)
    losses: list[float] = []
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    next_round(trainer, 0, 1)
    means = trainer.state.term_means
    assert set(means) == {"supervised", "pseudo_label", "three", "reliability", "agreement"}
    assert means["three"] == 3
    assert means["supervised"] + means["pseudo_label"] + 6 == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_means_are_reset_each_round(caplog: pytest.LogCaptureFixture) -> None:
    trainer = toy_trainer([TermLogger()], steps=1)
    with caplog.at_level("DEBUG", logger="samfed_monai"):
        next_round(trainer, 0, 2)
        first = trainer.state.term_means["supervised"]
        next_round(trainer, 1, 2)
    assert trainer.state.term_means["supervised"] == trainer.state.output[0]["loss"] != first
    assert f"round 1 of 2: supervised {first:.4f}" in caplog.text


TAU = 0.6
SURE = {"tau": TAU, "schedule": "constant"}


def site_loader(*, misleading: bool) -> DataLoader:
    """Ten images; their soft mask is the square, or, from a wrong teacher, everything but the square."""
    items = toy_items(10, 0)
    for item in items:
        item["teacher"] = 1 - item["teacher"] if misleading else item["teacher"]
    dataset = Dataset(items, Compose([WeakViewd(keys=("image", "label", "teacher")), StrongViewd()]))
    return DataLoader(dataset, batch_size=4, sampler=EndlessSampler(dataset), num_workers=0)


@pytest.fixture(scope="module")
def start() -> dict[str, torch.Tensor]:
    """A student that has seen public labels."""
    trainer = toy_trainer([SeedHandler(loaders=())], steps=60, learning_rate=0.3)
    next_round(trainer, 0, 1)
    return weights(trainer.network)


def a_round(start: dict[str, torch.Tensor], terms: list[Any], *, misleading: bool, before: bool = False, own=False):
    """The trainer after the second of two rounds; ``before`` it, or not, the first one; its ``own`` are its epochs."""
    network = toy_network()
    loaders = toy_loader(), site_loader(misleading=misleading)
    stream = UnlabelledStream(loader=loaders[1], guides=[BatchGuide()])
    handlers = [SeedHandler(loaders=loaders), *terms, stream, TermLogger()]  # stream and terms in any order
    trainer = toy_trainer(handlers, network=network, loader=loaders[0], steps=5, epochs=2)
    for round in range(0 if before else 1, 2):
        network.load_state_dict(start)
        trainer.run() if own else next_round(trainer, round, 2)
    return trainer


def sam_terms(rule: str, tau: float = TAU) -> list[Any]:
    return [kind(rule=rule, tau=tau, schedule="constant") for kind in (PseudoLabelTerm, SamDistillationTerm)]


@pytest.mark.parametrize("misleading", [False, True])
def test_trusted_average_uses_good_and_ignores_misleading_teacher(start, misleading):
    def soft(rule: str, teacher: str) -> list[Any]:
        named = {**SURE, "rule": rule, "teacher": teacher, **({"tau": 0.9} if rule == "average" else {})}
        terms: list[Any] = [PseudoLabelTerm(labels="soft", loss="structure", **named)]
        return terms if teacher == "weak" else [*terms, SamDistillationTerm(**named)]

    trusted = a_round(start, soft("trusted_average", "sam"), misleading=misleading)
    assert trusted.state.term_means["trust"] == (0 if misleading else 1)
    other = a_round(start, soft("average", "weak" if misleading else "sam"), misleading=misleading)
    assert same(weights(trusted.network), weights(other.network))


@pytest.mark.parametrize("own", [False, True])
def test_site_agreement_is_mean_over_images_of_round(start, own):
    seen = []

    class Watch(PseudoLabelTerm):
        def value(self, guidance, engine):
            (y_t, _), (y_c, k_c) = hard_label(guidance.guides["sam"]), hard_label(guidance.weak)
            dice, valid = sure_agreement(y_t, y_c, k_c > TAU)
            if engine.state.iteration == 6:  # of a trainer on its own the second epoch
                seen.clear()
            seen.append(dice[valid])
            found = self.agreement(guidance, engine)
            site = torch.cat(seen).mean()
            torch.testing.assert_close(engine.state.terms["sure_agreement"], site)
            torch.testing.assert_close(found.trust, trust_of_images(torch.where(valid, dice, site), site, 0.8))
            return super().value(guidance, engine)

    a_round(start, [Watch(rule="trusted_average", least_agreement=0.8, **SURE)], misleading=False, own=own)
    assert len(seen) == 5


def test_terms_with_equal_settings_share_site_agreement(start):
    unlike = [PseudoLabelTerm(rule="trusted_average", **SURE), SamDistillationTerm(rule="trusted_average", tau=0.9)]
    for terms, number in ((sam_terms("trusted_average"), 1), (unlike, 2), (sam_terms("teacher", 0.9), 0)):
        assert len(a_round(start, terms, misleading=False).state.site_agreements) == number


def test_round_depends_only_on_initial_weights(start):
    found = [a_round(start, sam_terms("trusted_average"), misleading=False, before=ran) for ran in (False, True)]
    assert found[0].state.term_means == found[1].state.term_means
    assert same(*(weights(trainer.network) for trainer in found))
