"""CPSS: swapped styles of patches, the loss term, and adaptation at a new site."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import save_tensors
from samfed_monai.handlers import Guidance, TermLogger
from samfed_monai.losses import weighted_pseudo_label_loss
from samfed_monai.methods.cpss import AdaptFrom, NoLabels, StyleSwapTerm, patches_of, swap_styles
from samfed_monai.networks.key_patterns import KeySplit
from tests.handlers.toy import Shown, next_round, same, toy_network, toy_trainer, weights
from tests.methods import engine_of, needs


def maps(seed: int, batch: int = 2, height: int = 9, width: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_published(features: torch.Tensor, order: torch.Tensor, side: int) -> torch.Tensor:
    """What the authors' code computes of a square map that ``side`` divides, without its 1e-6 in the variance."""
    size = features.shape[-1] // side
    grid = features.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5)
    patches = grid.flatten(0, 2)
    means, deviations = patches.mean((2, 3), keepdim=True), patches.var((2, 3), keepdim=True).sqrt()
    swapped = (patches - means) / deviations * deviations[order] + means[order]
    return swapped.view(grid.shape).permute(0, 3, 1, 4, 2, 5).reshape(features.shape)


@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]))
def test_swapped_styles_match_published_code(seed, side):
    features = maps(seed, height=8)
    count = 2 * side**2
    assert torch.equal(swap_styles(features, torch.arange(count), side), features)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(swap_styles(features, order, side), as_published(features, order, side))
    assert [len(patch[0]) for patch in patches_of(maps(seed, 1), 2)] == [5, 5, 4, 4], "of nine rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.7, 30.0])
def test_rounding_in_constant_patch_is_not_amplified(value, dtype):
    """13 x 13 equal numbers have a mean that is off by a bit, and a bit over nothing is any number."""
    flat = torch.full((1, 1, 13, 13), value, dtype=dtype)
    given_ = torch.randn(1, 1, 13, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    swapped = swap_styles(torch.cat([flat, given_]), torch.tensor([1, 0]), 1)
    assert swapped.dtype is dtype
    assert torch.equal(swapped[0], given_.float().mean().to(dtype).expand(1, 13, 13))
    torch.testing.assert_close(swapped[1], flat[0])


def test_low_variance_is_judged_relative_to_patch_mean():
    large = torch.tensor(1000.0)
    rounded = torch.stack([large, large.nextafter(2 * large)]).repeat(2).view(1, 1, 2, 2)
    given_ = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    assert swap_styles(torch.cat([rounded, given_]), torch.tensor([1, 0]), 1)[0].unique().tolist() == [1.0]
    faint = torch.tensor([[[[0.0, 2e-5], [2e-5, 0.0]]]], dtype=torch.float16)
    strong = torch.tensor([[[[-3.0, 3.0], [3.0, -3.0]]]], dtype=torch.float16)
    swapped = swap_styles(torch.cat([faint, strong]), torch.tensor([1, 0]), 1)
    torch.testing.assert_close(swapped, torch.cat([strong, faint]))


@pytest.mark.parametrize("size", [(8, 12), (12, 8)])
@pytest.mark.parametrize("labelled", [True, False])
def test_loss_uses_public_labels_and_sure_pseudo_labels(monkeypatch, labelled, size):
    network, seed = Shown(stride=2, channels=2), torch.Generator().manual_seed(2)
    public, own = torch.rand(2, 2, 3, *size, generator=seed)
    truth, weak = (torch.rand(2, 1, *size, generator=seed) > 0.5).float(), torch.rand(2, 1, *size, generator=seed)
    weak[..., :2, :] = 0.75  # as sure as tau is not surer
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count).roll(3))
    guidance = Guidance(student=weak, weak_view=weak, guides={}, batch={"image_strong": own})
    engine = engine_of(network, batch={"image": public, "label": truth}, round=2, rounds=5)
    engine.loss_function = loss = nn.BCEWithLogitsLoss()
    images = torch.cat([public, own]) if labelled else own
    # a map of a larger stride, and one of fewer than two pixels a patch are left as they are
    for stride, side, is_swapped in ((2, 2, True), (2, 1, True), (1, 2, False), (2, 3, False)):
        term = StyleSwapTerm(tau=0.75, side=side, stride=stride, labelled=labelled, fraction=0.8)
        value = term.value(guidance, engine)
        features = network.encoder(images)
        if is_swapped:
            features = swap_styles(features, torch.arange(len(images) * side**2).roll(3), side)
        logits = network.decoded(features)
        sure = ((weak > 0.75) | (weak < 0.25)).float()
        # half-way up a ramp of four rounds
        expected = math.exp(-1.25) * weighted_pseudo_label_loss(logits[-2:], (weak > 0.5).long(), sure)
        torch.testing.assert_close(value, (loss(logits[:2], truth) + expected) / 2 if labelled else expected)


def test_content_receives_gradient():
    features = maps(0).requires_grad_()
    swap_styles(features, torch.tensor([1, 0]), 1).square().sum().backward()
    assert features.grad is not None
    assert bool((features.grad != 0).any())


@needs("cpss_adapt")
def test_adaptation_trains_on_own_images_without_public_set(build, small_list, tmp_path):
    replace(small_list, public=[]).save(tmp_path / "list.json")
    moved = build("cpss_adapt", datalist=str(tmp_path / "list.json"))
    before = weights(moved.trainer.network)
    moved.run()
    assert moved.trainer.state.iteration == 2
    assert moved.trainer.state.term_means["supervised"] == 0.0
    assert not same(before, weights(moved.trainer.network))


def test_loss_and_gradient_are_zero_without_labels():
    logits = torch.tensor([[[[3.0, -3.0]]]], requires_grad=True)  # their sum is 0, too
    value = NoLabels()(logits, None)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(1, 1, 1, 2))


def test_initial_model_is_refused_in_federation(tmp_path):
    save_tensors(tmp_path / "model.safetensors", weights(toy_network()), {})
    trainer = toy_trainer([AdaptFrom(path=tmp_path / "model.safetensors"), TermLogger()])
    message = r"before#adapt \(AdaptFrom\): expected the run of a single site, found a federation; remove `model`"
    with pytest.raises(Refused, match=message):
        next_round(trainer, 0, 1)
    next_round(toy_trainer([AdaptFrom(), TermLogger()]), 0, 1)


class HalfFrozen(nn.Module):
    """A network of which only one part is trained; the other is a checkpoint's, and no model file has it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def key_split(self) -> KeySplit:
        return KeySplit(("trained.weight",), (), ("frozen.weight",))


def test_model_file_without_frozen_weights_is_loaded(tmp_path):
    network = HalfFrozen()
    before = weights(network)["frozen.weight"]
    save_tensors(tmp_path / "model.safetensors", {"trained.weight": torch.tensor([[7.0]])}, {})
    AdaptFrom(path=tmp_path / "model.safetensors")(SimpleNamespace(network=network, state=SimpleNamespace()))
    assert torch.equal(network.frozen.weight, before)
    assert network.trained.weight.item() == 7.0
