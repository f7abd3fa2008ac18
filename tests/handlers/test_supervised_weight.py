"""A site that must not learn from the public labels."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import BatchGuide, PseudoLabelTerm, SupervisedWeight, TermLogger, UnlabelledStream
from tests.handlers.toy import next_round, same, toy_items, toy_network, toy_trainer, weights


def plain_loader(seed: int) -> DataLoader:
    return DataLoader(Dataset(toy_items(8, seed)), batch_size=4, num_workers=0)


def trained(public_seed: int, *handlers) -> dict[str, torch.Tensor]:
    """Weights after a round; the unlabelled images are always the same."""
    items = [{**item, "image_strong": item["image"]} for item in toy_items(8, seed=1)]
    stream = UnlabelledStream(loader=DataLoader(Dataset(items), batch_size=4, num_workers=0), guides=[BatchGuide()])
    own = [stream, PseudoLabelTerm(rule="teacher", schedule="constant"), TermLogger()]
    trainer = toy_trainer([*handlers, *own], loader=plain_loader(public_seed), steps=2)
    next_round(trainer, 0, 1)
    return weights(trainer.network)


def test_with_weight_0_the_public_images_leave_no_trace() -> None:
    assert same(trained(11, SupervisedWeight()), trained(12, SupervisedWeight()))
    assert not same(trained(11), trained(12))


def test_the_sites_own_images_still_move_weights_and_running_statistics() -> None:
    before, after = weights(toy_network()), trained(11, SupervisedWeight())
    for name in ("0.weight", "1.running_mean", "3.weight"):
        assert not torch.equal(before[name], after[name])


def test_batchnorm_has_its_momentum_back() -> None:
    network = toy_network()
    trainer = toy_trainer([SupervisedWeight()], network=network, steps=2)
    next_round(trainer, 0, 1)
    assert network[1].momentum == 0.1  # type: ignore[index]


def test_a_step_that_fails_does_not_leave_batchnorm_frozen() -> None:
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


def test_the_loss_is_halved_and_recorded_whole() -> None:
    trainer = toy_trainer([SupervisedWeight(weight=0.5), TermLogger()], steps=1)
    next_round(trainer, 0, 1)
    loss = trainer.state.output[0]["loss"] if isinstance(trainer.state.output, list) else trainer.state.output["loss"]
    assert float(loss) == pytest.approx(trainer.state.term_means["supervised"] / 2)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(Refused, match=r"SupervisedWeight\) -> weight: expected a number >= 0, found -0.5"):
        SupervisedWeight(weight=-0.5)
