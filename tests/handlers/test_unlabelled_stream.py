"""The stream of unlabelled batches: its order and batches, and sites that ignore public labels."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset
from monai.engines.utils import IterationEvents

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import (
    BatchGuide,
    EndlessSampler,
    PseudoLabelTerm,
    SupervisedWeight,
    TermLogger,
    UnlabelledStream,
)
from tests.handlers.toy import SIZE, next_round, same, toy_items, toy_loader, toy_network, toy_trainer, weights


def test_guidance_has_views_and_guides_and_strong_view_trains() -> None:
    network = toy_network()
    guides = {"any": BatchGuide(), "disabled": None}
    stream = UnlabelledStream(loader=toy_loader(), guides=guides)  # type: ignore[arg-type]
    trainer = toy_trainer([stream], steps=1, network=network)
    trainer.run()
    guidance = trainer.state.guidance
    assert guidance.student.shape == guidance.weak.shape == guidance.guides["sam"].shape == (4, 1, SIZE, SIZE)
    assert guidance.student.requires_grad
    assert not guidance.weak.requires_grad
    assert 0 <= guidance.weak.min() <= guidance.weak.max() <= 1
    assert network[1].num_batches_tracked == 2  # type: ignore[index]  # labelled batch and strong view


def test_weak_view_equals_evaluation_and_keeps_batchnorm() -> None:
    network = toy_network()
    seen: dict[str, Any] = {}

    class Watch(BatchGuide):
        def __call__(self, batch, engine):  # called after the weak view, before the strong one
            seen["after"], seen["training"], seen["image"] = weights(network), network.training, batch["image"]
            return super().__call__(batch, engine)

    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(), guides=[Watch()])], network=network, steps=1)
    trainer._event_handlers[IterationEvents.FORWARD_COMPLETED].insert(
        0, (lambda: seen.update(before=weights(network)), (), {})
    )
    expected: list[torch.Tensor] = []
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, lambda each: expected.append(each.state.guidance.weak))
    trainer.run()
    assert same(seen["before"], seen["after"])
    assert seen["training"]  # train mode is back for the strong view
    network.load_state_dict(seen["after"])
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(seen["image"]).sigmoid(), expected[0])


def test_missing_unlabelled_images_are_refused() -> None:
    trainer = toy_trainer([UnlabelledStream(loader=toy_loader(0))])
    with pytest.raises(Refused, match=r"stream#loader: expected unlabelled images, found none at this site"):
        trainer.run()
    assert trainer.state.iteration == 0


def test_batch_without_views_is_refused_with_missing_keys() -> None:
    stream = UnlabelledStream(loader=DataLoader(Dataset([{"label": torch.zeros(1)}]), num_workers=0))
    with pytest.raises(Refused, match=r"(?s)refused: 2 problems.*the key 'image'.*the key 'image_strong'.*StrongViewd"):
        toy_trainer([stream]).run()


def test_invalid_options_are_refused() -> None:
    with pytest.raises(Refused, match="guides: expected unique names, found two guides named 'sam'"):
        UnlabelledStream(loader=[], guides=[BatchGuide(), BatchGuide(key="label")])
    for value in (-0.1, 1.5):
        with pytest.raises(Refused, match=r"stream#cutmix: expected a probability in \[0, 1\]"):
            UnlabelledStream(loader=[], cutmix=value)
    with pytest.raises(Refused, match=r"SupervisedWeight\) -> weight: expected a number >= 0, found -0.5"):
        SupervisedWeight(weight=-0.5)


def test_cutmix_mixes_images_and_guides_equally() -> None:
    items = toy_items(4, seed=3)
    for index, item in enumerate(items):  # every image is flat, and so is its guide, so a mix can be read off
        item["image"] = torch.full((3, SIZE, SIZE), index / 4)
        item["image_strong"], item["teacher"] = item["image"], torch.full((1, SIZE, SIZE), index / 4)
    loader = DataLoader(Dataset(items), batch_size=4, num_workers=0)
    stream = UnlabelledStream(loader=loader, guides=[BatchGuide()], cutmix=1.0)
    trainer, seen = toy_trainer([stream], steps=1), []
    inferer = trainer.inferer
    trainer.inferer = lambda images, network: (seen.append(images), inferer(images, network))[1]
    trainer.run()
    strong = seen[2][:, :1]  # after the labelled batch and the weak view
    assert torch.equal(strong, trainer.state.guidance.guides["sam"])
    assert len(strong[1].unique()) == 2


@given(st.integers(1, 20), st.integers(0, 2**31 - 1), st.integers(1, 60))
def test_sampler_is_balanced_and_reproducible(count: int, seed: int, length: int) -> None:
    sampler = EndlessSampler(range(count))
    sampler.set_random_state(seed)
    order = list(islice(sampler, length))
    assert order == list(islice(sampler, length))
    times = [order.count(index) for index in range(count)]
    assert max(times) - min(times) <= 1
    assert list(EndlessSampler([])) == []


def train(public_seed: int, *handlers) -> dict[str, torch.Tensor]:
    """Weights after a round; the unlabelled images are always the same."""
    items = [{**item, "image_strong": item["image"]} for item in toy_items(8, seed=1)]
    stream = UnlabelledStream(loader=DataLoader(Dataset(items), batch_size=4, num_workers=0), guides=[BatchGuide()])
    own = [stream, PseudoLabelTerm(rule="teacher", schedule="constant"), TermLogger()]
    loader = DataLoader(Dataset(toy_items(8, public_seed)), batch_size=4, num_workers=0)
    trainer = toy_trainer([*handlers, *own], loader=loader, steps=3)
    next_round(trainer, 0, 1)
    assert (trainer.state.iteration, trainer.network[1].momentum) == (3, 0.1), "a loader that ends starts over"
    return weights(trainer.network)


def test_zero_supervised_weight_trains_on_site_images_alone() -> None:
    before, after = weights(toy_network()), train(11, SupervisedWeight())
    assert same(after, train(12, SupervisedWeight()))
    assert not same(train(11), train(12))
    for name in ("0.weight", "1.running_mean", "3.weight"):
        assert not torch.equal(before[name], after[name])


def test_batchnorm_momentum_is_restored_after_failed_step() -> None:
    network = toy_network()
    handler = SupervisedWeight()
    trainer = toy_trainer([handler], network=network, steps=2)
    inferer, trainer.inferer = trainer.inferer, lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next_round(trainer, 0, 2)
    fresh = toy_trainer([handler], network=network, steps=1)
    fresh.inferer = inferer
    next_round(fresh, 1, 2)
    assert network[1].momentum == 0.1  # type: ignore[index]


def test_supervised_weight_scales_loss_but_not_record() -> None:
    trainer = toy_trainer([SupervisedWeight(weight=0.5), TermLogger()], steps=1)
    next_round(trainer, 0, 1)
    loss = trainer.state.output[0]["loss"] if isinstance(trainer.state.output, list) else trainer.state.output["loss"]
    assert float(loss) == pytest.approx(trainer.state.term_means["supervised"] / 2)
