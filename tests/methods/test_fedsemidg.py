"""FedSemiDG's FGASL: weights from gaps, labels of two guides, dropped channels, and the gap itself."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.functional import dropout2d

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import EmaGuide, GlobalGuide, Guidance, TermLogger, UnlabelledStream
from samfed_monai.losses import probabilities, weighted_pseudo_label_loss
from samfed_monai.methods import fedsemidg
from samfed_monai.protocol import MessageRefused, Server
from tests.handlers.toy import Shown, next_round, toy_loader, toy_trainer
from tests.methods import engine_of
from tests.methods.rounds import a_round, update


def test_gap_weights_match_hand_computed_values():
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for round, grown in ((0, [0.6, 0.35, 0.2]), (5, [0.55, 0.325, 0.2])):
        moved = fedsemidg.gap_weights(start, torch.tensor([4.0, 2.0, 0.0]), round, 10, 0.3)
        torch.testing.assert_close(moved, torch.tensor(grown, dtype=torch.float64) / sum(grown))
    assert torch.equal(fedsemidg.gap_weights(start, torch.zeros(3), 0, 10, 0.3), start)
    assert fedsemidg.gap_weights(torch.ones(1), torch.tensor([0.7]), 0, 10, 0.3).tolist() == [1.0], "of a single site"
    assert fedsemidg.gap_weights(start, torch.ones(3), 0, 10, 0.3).tolist() == pytest.approx([6 / 13, 4 / 13, 3 / 13])


@pytest.mark.parametrize(
    ("weights", "gaps", "step", "expected"),
    [
        ([0.5, 0.3, 0.2], [-0.25, -0.5, -1.0], 0.3, [0.475 / 0.825, 0.25 / 0.825, 0.1 / 0.825]),
        ([0.9, 0.1], [4.0, 2.0], 0.6, [1 / 1.2, 0.2 / 1.2]),  # 1.1 is cut
        ([0.5, 0.3, 0.2], [-1.0, -0.5, -1.0], 6.0, [1 / 3, 1 / 3, 1 / 3]),  # all of them are 0
        ([0.5, 0.3, 0.2], [1.0, 2.0, 3.0], 0.0, [0.5, 0.3, 0.2]),
    ],
    ids=["all below 0", "one above 1", "none is left", "no step"],
)
def test_weights_outside_unit_interval_are_clipped(weights, gaps, step, expected):
    moved = fedsemidg.gap_weights(torch.tensor(weights), torch.tensor(gaps), 0, 10, step)
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=100)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6), st.integers(0, 9), st.floats(0, 5))
def test_weights_stay_on_simplex(gaps, round, step):
    weights = torch.full((len(gaps),), 1 / len(gaps))
    moved = fedsemidg.gap_weights(weights, torch.tensor(gaps, dtype=torch.float64), round, 10, step)
    assert bool(((moved >= 0) & (moved <= 1)).all())
    assert moved.sum().item() == pytest.approx(1, abs=1e-6)


def answers(gaps, round=0):
    numbers = [{"term_generalisation_gap": gap} for gap in gaps]
    return {
        f"s{at}": update(f"s{at}", round=round, rounds=10, images=1 + at, metrics=metrics, w=[float(at)])
        for at, metrics in enumerate(numbers)
    }


def as_published(gaps, step=0.3, rounds=10):
    """Means of rounds in which site k sends k: the server's loop of the authors' code, in its own words."""
    weights, means = [1 / len(gaps[0])] * len(gaps[0]), []
    for number, of_round in enumerate(gaps):
        length = step / 3 * (rounds - number) / rounds
        moved = [min(max(w + length * gap / max(of_round), 0), 1) for w, gap in zip(weights, of_round, strict=True)]
        after = [each / sum(moved) for each in moved]
        used, weights = (weights, after) if number == 0 else (after, after)
        means.append(sum(at * weight for at, weight in enumerate(used)))
    return means


def test_aggregation_matches_published_algorithm():
    gaps = [[1.0, 3.0, 0.5], [2.0, 0.5, 0.0], [0.1, 0.4, 0.9]]
    names = [f"s{at}" for at in range(3)]
    strategy = fedsemidg.GeneralisationAware(step=0.3).attach(Server(names, 10, weights={"w": torch.zeros(1)}))
    found = []
    for number, of_round in enumerate(gaps):
        a_round(strategy, answers(of_round, number), number)
        found.append(strategy.global_weights["w"].item())
    assert found == pytest.approx(as_published(gaps), abs=1e-6)
    assert found[0] == 1.0


def test_answer_without_gap_is_refused():
    strategy = fedsemidg.GeneralisationAware().attach(Server(["s0"], 10, weights={"w": torch.zeros(1)}))
    strategy.configure(0)
    with pytest.raises(MessageRefused, match="the mean of the term 'generalisation_gap'"):
        strategy.accept(0, "s0", replace(answers([1.0])["s0"], metrics={}))


def test_entropy_matches_hand_computed_values():
    assert fedsemidg.entropy(torch.full((1, 1, 1, 1), 0.5)).item() == pytest.approx(math.log(2))
    assert fedsemidg.entropy(torch.full((1, 4, 1, 1), 0.25)).item() == pytest.approx(math.log(4), rel=1e-5)
    assert fedsemidg.entropy(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)).max().item() == pytest.approx(0, abs=1e-5)


def stream(*guides):
    return UnlabelledStream(loader=toy_loader(), guides=list(guides))


def test_first_threshold_of_round_uses_first_batch():
    seen, firsts = [], []
    term = fedsemidg.DualGuideTerm()
    trainer = toy_trainer([stream(GlobalGuide(), EmaGuide()), term, TermLogger()], steps=4)

    def look(engine):
        seen.append(float(term._threshold))
        if len(seen) % 4 == 1:
            of_batch = fedsemidg.entropy(probabilities(engine.state.output["pred"].detach())).flatten()
            firsts.append(float(of_batch.quantile(0.15 + 0.15 * engine.state.round / 2)))

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, look)
    for number in range(2):
        torch.manual_seed(0)
        next_round(trainer, number, 2)
    assert 0 <= trainer.state.term_means["dual_sure"] <= 1
    assert [seen[0], seen[4]] == pytest.approx(firsts)


def test_dual_guide_counts_pixels_sure_in_both_guides(monkeypatch):
    term = fedsemidg.DualGuideTerm()
    chances = torch.tensor([0.99, 0.9, 0.5])
    low, middle, high = (-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.99, 0.9, 0.5))
    engine = engine_of(rounds=2, epoch_length=2, output={"pred": torch.logit(chances).view(1, 1, 1, 3)})
    # the mean of the first two is one half, but both are sure; of the third one alone; of the fourth none
    one = torch.tensor([0.999, 0.999, 0.999, 0.6]).view(1, 1, 2, 2)
    other = torch.tensor([0.001, 0.998, 0.6, 0.6]).view(1, 1, 2, 2)
    student = torch.tensor([0.3, -1.0, 2.0, 0.5]).view(1, 1, 2, 2)
    guidance = Guidance(student=student, weak_view=one, guides={"global": one, "ema": other})
    value = term.value(guidance, engine)
    first = low + 0.3 * (middle - low)  # rho is 0.15, of two steps between three numbers
    assert term._threshold.item() == pytest.approx(first, abs=1e-5)
    sure = torch.tensor([1.0, 1, 0, 0]).view(1, 1, 2, 2)
    label = ((one + other) / 2 > 0.5).long()  # of the mean
    torch.testing.assert_close(value, weighted_pseudo_label_loss(student, label, sure))
    assert engine.state.terms["dual_sure"] == 0.5
    engine.state.iteration = 2  # a quarter of the run is over: rho is 0.1875
    term.value(guidance, engine)
    assert term._threshold.item() == pytest.approx(0.9 * first + 0.1 * (low + 0.375 * (middle - low)), abs=1e-5)
    monkeypatch.setattr(fedsemidg, "_MOST_VALUES", 2)  # every second number counts
    term._reset_threshold(engine)
    term.value(guidance, engine)
    assert term._threshold.item() == pytest.approx(low + 0.1875 * (high - low), abs=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_dual_guide_mask_and_label_match_published_code(classes):
    labelled, near, student = 2 * torch.randn(3, 1, classes, 3, 7, generator=torch.Generator().manual_seed(5))
    for second, count in ((labelled, 19), (labelled + near, 5)):  # of 21 pixels the nineteenth is at 0.9; it counts
        guides = {name: probabilities(each) for name, each in (("global", labelled), ("ema", second))}
        planes = [torch.cat([1 - each, each], 1) if classes == 1 else each for each in guides.values()]
        one, other = (-(each * each.log()).sum(1, keepdim=True) for each in planes)
        sure = ((one + other) / 2 <= one.quantile(0.9)).float()
        engine = engine_of(rounds=2, epoch_length=2, output={"pred": labelled})
        term = fedsemidg.DualGuideTerm(start=0.9, end=0.9)
        value = term.value(Guidance(student=student, weak_view=near, guides=guides), engine)
        torch.testing.assert_close(value, weighted_pseudo_label_loss(student, sum(planes).argmax(1)[:, None], sure))
        assert engine.state.terms["dual_sure"] == sure.mean() >= count / 21


def test_quantile_rises_and_zero_memory_uses_batch_threshold():
    term = fedsemidg.DualGuideTerm(start=0.4, end=0.8, memory=0)
    chances = torch.tensor([0.99, 0.9, 0.5])
    _, middle, high = (-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.99, 0.9, 0.5))
    guides = {name: torch.full((1, 1, 1, 3), 0.9) for name in ("global", "ema")}
    guidance = Guidance(student=torch.zeros(1, 1, 1, 3), weak_view=guides["ema"], guides=guides)
    engine = engine_of(round=1, rounds=2, epoch_length=2, output={"pred": torch.logit(chances).view(1, 1, 1, 3)})
    for engine.state.iteration, share in ((1, 0.6), (2, 0.7)):  # a half and three quarters of the run
        term.value(guidance, engine)
        assert term._threshold.item() == pytest.approx(middle + 2 * (share - 0.5) * (high - middle), abs=1e-5)


def test_alignment_is_mean_square_of_dropout_difference():
    network = Shown()
    term = fedsemidg.DropoutAlignmentTerm(network=network, drop=0.5)
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(student=image, weak_view=image, guides={}, batch={"image_strong": image})
    term._features.listen()
    network(image.roll(1, 0))  # the labelled batch
    network(image)
    network(image.flip(0))  # another term's
    torch.manual_seed(4)
    value = term.value(guidance, engine_of(network))
    term._features.stop()
    torch.manual_seed(4)
    features = network.encoder(image)
    expected = (dropout2d(features, 0.5).relu() - features.relu()).square().mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*[torch.autograd.grad(each, network.encoder.weight)[0] for each in (value, expected)])


def test_gap_meter_reports_divergence_from_global_network():
    class Global:
        name = "global"

        def __call__(self, batch, engine):
            return torch.full_like(batch["image"][:, :1], 0.8)

    batches = [{"image": torch.zeros(1, 3, 2, 2)}] * 3
    meter = fedsemidg.GapMeter(loader=batches, guide=Global(), batches=2)  # type: ignore[arg-type]
    state = SimpleNamespace(device="cpu", term_means={"other": 1.0})
    seen = []
    meter(SimpleNamespace(state=state, network=nn.Identity(), inferer=lambda image, _: seen.append(0) or image[:, :1]))
    assert len(seen) == 2
    # KL of 0.8 from one half, which a logit of 0 is
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert state.term_means == {"other": 1.0, "generalisation_gap": pytest.approx(expected, abs=1e-6)}


def test_zero_dropout_gives_zero_alignment():
    for drop, larger in ((0.0, False), (0.5, True)):
        network = Shown()
        term = fedsemidg.DropoutAlignmentTerm(network=network, drop=drop)
        trainer = toy_trainer([stream(), term, TermLogger()], network=network)
        next_round(trainer, 0, 1)
        assert (trainer.state.term_means["alignment"] > 0) is larger


@pytest.mark.parametrize(("start", "end"), [(0.4, 0.3), (0.0, 0.3), (0.4, 1.0)])
def test_invalid_quantiles_are_refused(start, end):
    fedsemidg.DualGuideTerm(start=0.3, end=0.3)
    message = rf"terms#dual_guide#start: expected two quantiles in \(0, 1\), ascending, found {start} to {end}"
    with pytest.raises(Refused, match=message):
        fedsemidg.DualGuideTerm(start=start, end=end)
