"""Schedules by hand; what is learned of teacher and student during a round, and forgotten after it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from samfed_monai.handlers import (
    SCHEDULES,
    BatchGuide,
    EndlessSampler,
    PseudoLabelTerm,
    SamDistillationTerm,
    SeedHandler,
    TermLogger,
    UnlabelledStream,
    constant,
    gaussian_ramp,
)
from samfed_monai.losses import hard_label, sure_agreement, trust_of_images
from samfed_monai.transforms import StrongViewd, WeakViewd
from tests.handlers.toy import next_round, same, toy_items, toy_loader, toy_network, toy_trainer, weights


def test_gaussian_ramp_rises_over_the_first_40_percent_and_stays_at_1() -> None:
    assert gaussian_ramp(0, 10) == pytest.approx(math.exp(-5))
    assert gaussian_ramp(2, 10) == pytest.approx(math.exp(-5 * 0.25))  # t = 2 / 4
    assert gaussian_ramp(4, 10) == 1.0
    assert gaussian_ramp(9, 10) == 1.0
    assert gaussian_ramp(0, 5, fraction=0.2) == pytest.approx(math.exp(-5)), "one of one round is one"
    assert gaussian_ramp(0, 1) == gaussian_ramp(0, 100, fraction=0.0) == 1.0, "shorter than a round it is no ramp"
    assert constant(0, 10) == 1.0


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.floats(0, 1))
def test_every_schedule_stays_in_0_1_and_never_falls(name: str, rounds: int, fraction: float) -> None:
    values = [SCHEDULES[name](r, rounds, fraction) for r in range(rounds)]
    assert all(0 <= value <= 1 for value in values)
    assert values == sorted(values)


TAU = 0.6
SURE = {"tau": TAU, "schedule": "constant"}


def site_loader(*, misleading: bool) -> DataLoader:
    """Ten images whose soft mask is the square, or, from a teacher that misleads, everything but the square."""
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
def test_the_trusted_average_is_the_average_beside_a_good_teacher_and_leaves_a_misleading_one_out(start, misleading):
    def soft(rule: str, teacher: str) -> list[Any]:
        named = {**SURE, "rule": rule, "teacher": teacher, **({"tau": 0.9} if rule == "average" else {})}
        terms: list[Any] = [PseudoLabelTerm(labels="soft", loss="structure", **named)]
        return terms if teacher == "weak" else [*terms, SamDistillationTerm(**named)]

    trusted = a_round(start, soft("trusted_average", "sam"), misleading=misleading)
    assert trusted.state.term_means["trust"] == (0 if misleading else 1)
    other = a_round(start, soft("average", "weak" if misleading else "sam"), misleading=misleading)
    assert same(weights(trusted.network), weights(other.network))


@pytest.mark.parametrize("own", [False, True])
def test_what_is_learnt_is_the_mean_over_the_images_of_the_round(start, own):
    seen = []

    class Watch(PseudoLabelTerm):
        def value(self, guidance, engine):
            (y_t, _), (y_c, k_c) = hard_label(guidance.guides["sam"]), hard_label(guidance.weak)
            dice, says = sure_agreement(y_t, y_c, k_c > TAU)
            if engine.state.iteration == 6:  # of a trainer on its own the second epoch
                seen.clear()
            seen.append(dice[says])
            found = self.agreement(guidance, engine)
            site = torch.cat(seen).mean()
            torch.testing.assert_close(engine.state.terms["sure_agreement"], site)
            torch.testing.assert_close(found.trust, trust_of_images(torch.where(says, dice, site), site, 0.8))
            return super().value(guidance, engine)

    a_round(start, [Watch(rule="trusted_average", least_agreement=0.8, **SURE)], misleading=False, own=own)
    assert len(seen) == 5


def test_terms_of_equal_settings_share_one_and_others_do_not(start):
    unlike = [PseudoLabelTerm(rule="trusted_average", **SURE), SamDistillationTerm(rule="trusted_average", tau=0.9)]
    for terms, number in ((sam_terms("trusted_average"), 1), (unlike, 2), (sam_terms("teacher", 0.9), 0)):
        assert len(a_round(start, terms, misleading=False).state.site_agreements) == number


def test_a_round_is_a_function_of_its_weights(start):
    found = [a_round(start, sam_terms("trusted_average"), misleading=False, before=ran) for ran in (False, True)]
    assert found[0].state.term_means == found[1].state.term_means
    assert same(*(weights(trainer.network) for trainer in found))
