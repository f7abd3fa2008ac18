"""Trust in SAM during a round: what it comes to with a good and with a misleading teacher, and that it is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from samfed_monai.handlers import (
    BatchGuide,
    EmaGuide,
    EndlessSampler,
    PseudoLabelTerm,
    SamDistillationTerm,
    SeedHandler,
    TermLogger,
    UnlabelledStream,
)
from samfed_monai.losses import hard_label, sure_agreement, trust_of_images
from samfed_monai.transforms import StrongViewd, WeakViewd
from tests.handlers.toy import next_round, same, toy_items, toy_loader, toy_network, toy_trainer, weights

TAU = 0.6
SURE = {"tau": TAU, "schedule": "constant"}


def site_loader(*, misleading: bool) -> DataLoader:
    """Ten images whose soft mask is the square, or, from a teacher that misleads, everything but the square."""
    items = toy_items(10, 0)
    for item in items:
        item["teacher"] = 1 - item["teacher"] if misleading else item["teacher"]
    dataset = Dataset(items, Compose([WeakViewd(keys=("image", "label", "teacher")), StrongViewd()]))
    return DataLoader(dataset, batch_size=4, sampler=EndlessSampler(dataset), num_workers=0)


def warmed_up(steps: int = 60) -> dict[str, torch.Tensor]:
    """A student that has seen public labels."""
    trainer = toy_trainer([SeedHandler(loaders=())], steps=steps, learning_rate=0.3)
    next_round(trainer, 0, 1)
    return weights(trainer.network)


@pytest.fixture(scope="module")
def start() -> dict[str, torch.Tensor]:
    return warmed_up()


def a_round(start: dict[str, torch.Tensor], terms: list[Any], *, misleading: bool, ema: bool = False, rounds: int = 1):
    network = toy_network()
    loaders = toy_loader(), site_loader(misleading=misleading)
    guides = [BatchGuide(), *([EmaGuide()] if ema else [])]
    stream = UnlabelledStream(loader=loaders[1], guides=guides)
    handlers = [SeedHandler(loaders=loaders), *terms, stream, TermLogger()]  # stream and terms in any order
    trainer = toy_trainer(handlers, network=network, loader=loaders[0], steps=5, learning_rate=0.01)
    for round in range(rounds):
        network.load_state_dict(start)
        next_round(trainer, round, rounds)
    return trainer


def sam_terms(rule: str) -> list[Any]:
    return [PseudoLabelTerm(rule=rule, **SURE), SamDistillationTerm(rule=rule, **SURE)]


def test_a_good_teacher_is_the_rule_teacher_to_the_bit(start):
    adaptive = a_round(start, sam_terms("adaptive"), misleading=False)
    assert adaptive.state.term_means["trust"] == 1
    assert adaptive.state.term_means["sure_agreement"] > 0.9
    teacher = a_round(start, sam_terms("teacher"), misleading=False)
    assert same(weights(adaptive.network), weights(teacher.network))
    assert not same(weights(adaptive.network), start)


def test_a_misleading_teacher_is_the_rule_student_without_distillation_to_the_bit(start):
    adaptive = a_round(start, sam_terms("adaptive"), misleading=True)
    assert adaptive.state.term_means["trust"] == 0
    assert adaptive.state.term_means["sam_kd"] == 0
    no_sam = a_round(start, [PseudoLabelTerm(rule="student", **SURE)], misleading=True)
    assert same(weights(adaptive.network), weights(no_sam.network))
    teacher = a_round(start, sam_terms("teacher"), misleading=True)
    assert not same(weights(adaptive.network), weights(teacher.network))


def test_it_asks_for_no_averaged_student(start):
    without, beside = (a_round(start, sam_terms("adaptive"), misleading=True, ema=ema) for ema in (False, True))
    assert without.state.term_means["sure_agreement"] == beside.state.term_means["sure_agreement"]


def test_what_is_learnt_is_the_mean_over_the_images_of_the_round(start):
    seen = []

    class Watch(PseudoLabelTerm):
        def value(self, guidance, engine):
            (y_t, _), (y_c, k_c) = hard_label(guidance.guides["sam"]), hard_label(guidance.weak)
            dice, says = sure_agreement(y_t, y_c, k_c > TAU)
            seen.append(dice[says])
            found = self.agreement(guidance, engine)
            site = torch.cat(seen).mean()
            torch.testing.assert_close(engine.state.terms["sure_agreement"], site)
            torch.testing.assert_close(found.trust, trust_of_images(torch.where(says, dice, site), site, 0.8))
            return super().value(guidance, engine)

    a_round(start, [Watch(rule="adaptive", least_agreement=0.8, **SURE)], misleading=False)
    assert len(seen) == 5


def test_terms_of_equal_settings_share_one_and_others_do_not(start):
    trainer = a_round(start, sam_terms("adaptive"), misleading=False)
    assert len(trainer.state.site_trusts) == 1
    unlike = [PseudoLabelTerm(rule="adaptive", **SURE), SamDistillationTerm(rule="adaptive", tau=0.9)]
    assert len(a_round(start, unlike, misleading=False).state.site_trusts) == 2


def test_a_round_is_a_function_of_its_weights(start):
    def last_round(before: int) -> dict[str, torch.Tensor]:
        network, loaders = toy_network(), (toy_loader(), site_loader(misleading=True))
        stream = UnlabelledStream(loader=loaders[1], guides=[BatchGuide()])
        handlers = [SeedHandler(loaders=loaders), *sam_terms("adaptive"), stream]
        trainer = toy_trainer(handlers, network=network, loader=loaders[0], steps=3)
        if before:
            network.load_state_dict(start)
            next_round(trainer, 0, 2)
        network.load_state_dict(weights(toy_network(3)))
        next_round(trainer, 1, 2)
        return weights(network)

    assert same(last_round(before=0), last_round(before=1))


def test_another_rule_learns_nothing(start):
    trainer = a_round(start, sam_terms("teacher"), misleading=False)
    assert not hasattr(trainer.state, "site_trusts")
    assert trainer.state.guidance.trust == {}
