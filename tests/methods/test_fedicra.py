"""FedICRA: the decoder's mixture and its ends, head and body in turn, and the tree energy against all pairs by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.data import render_synthetic
from samfed_monai.methods.fedicra import (
    DecoderMixing,
    HeadThenBody,
    TreeEnergyTerm,
    decoder_names,
    spanning_trees,
    tree_energy,
    tree_filtered,
)
from samfed_monai.networks import client_network
from samfed_monai.protocol import Kind
from tests.methods.personal import Six, numbers_of, six, six_trainer

OWN = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
GLOBAL = [0.0, 1.0, 2.0, 3.0, 4.0, -2.0]
TARGET = [0.0, 0.0, 0.0, 0.0, 2.0, -2.0]


def made(**options: Any) -> tuple[DecoderMixing, Any]:
    network = Six(OWN)
    chosen = torch.optim.AdamW(network.parameters(), lr=0.1)
    settings = {"decoder": ["b"], "rate": 0.1, "batches": 1, "first_batches": 1, "after": 0}
    sharing = DecoderMixing(network=network, optimizer=chosen, site="s", **{**settings, **options})
    return sharing, six_trainer(network, chosen, [sharing], TARGET)


def test_the_decoder_starts_at_the_sites_own_and_moves_towards_the_global_one() -> None:
    sharing, _ = made()
    means = sharing.receive(1, 3, Kind.WEIGHTS, six(GLOBAL))
    # W = 1 gives the own [2, 2]; gradient [0, 4]; times (own - global) = [-2, 4]: W = [1, 1 - 0.1 * 16] clipped to 0
    assert numbers_of(sharing.network.state_dict()) == [0.0, 1.0, 2.0, 3.0, 2.0, -2.0]
    assert means == {"own": 0.5}
    assert sharing.optimizer.state == {}


def test_without_batches_the_decoder_stays_the_sites_own_and_the_encoder_is_the_global_one() -> None:
    sharing, _ = made(batches=0, first_batches=0)
    assert sharing.receive(1, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 1.0}
    assert numbers_of(sharing.network.state_dict()) == [*GLOBAL[:4], *OWN[4:]]


def test_a_large_step_against_its_own_gives_the_global_decoder() -> None:
    sharing, trainer = made(rate=100.0)
    trainer.data_loader.dataset[0]["label"] = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, -9.0])
    assert sharing.receive(1, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 0.0}
    assert numbers_of(sharing.network.state_dict()) == GLOBAL


def test_the_mixture_begins_anew_in_every_round_and_the_first_rounds_have_none() -> None:
    sharing, _ = made(after=1)
    assert sharing.receive(0, 3, Kind.WEIGHTS, six(GLOBAL)) == {}
    assert numbers_of(sharing.network.state_dict()) == GLOBAL
    for round in (1, 2):
        sharing.put(six(OWN))
        assert sharing.receive(round, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 0.5}, "not from 0.5 on"
    assert sharing.receive(2, 3, Kind.WEIGHTS, numbers_as_they_are(sharing)) == {}, "both sides are alike"


def numbers_as_they_are(sharing: DecoderMixing) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in sharing.network.state_dict().items()}


def test_a_site_that_went_on_learns_no_first_mixture_again() -> None:
    sharing, _ = made(first_batches=0)
    assert sharing.receive(1, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 1.0}
    state = sharing.state_dict()
    other, _ = made(first_batches=0)
    other.load_state_dict(state)
    assert other.receive(2, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 0.5}
    other.load_state_dict({})
    other.put(six(OWN))
    assert other.receive(2, 3, Kind.WEIGHTS, six(GLOBAL)) == {"own": 1.0}


def test_the_decoder_is_everything_behind_the_encoder() -> None:
    unet = client_network("basic_unet", load=False)
    parts = {name.partition(".")[0] for name in decoder_names(unet)}
    assert parts == {"upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv"}
    light = client_network("lite0_fpn", load=False)
    names, everything = decoder_names(light), {name for name, _ in light.named_parameters()}
    assert everything - names == {name for name in everything if name.startswith("encoder.")} != set()


def test_options_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)sharing#after: .*rounds >= 0, found -1.*sharing#rate: .*found -2"):
        made(after=-1, rate=-2)
    with pytest.raises(Refused, match=r"sharing#decoder: expected at least one, found no name like 'dec\.\*'"):
        made(decoder=["dec.*"])
    with pytest.raises(Refused, match=r"(?s)sharing#decoder: expected a network with an encoder.*found Six.*name its"):
        made(decoder=None)


class Parts(nn.Module):
    """A body and a head of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body.expand(len(images), 1))


def in_turn(share: float, steps: int, network: nn.Module | None = None) -> list[tuple[float, float]]:
    """Body and head after each step."""
    network = network or Parts()
    sharing, _ = made()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = six_trainer(network, optimizer, [HeadThenBody(sharing=sharing, share=share)], [5.0], steps)
    seen: list[tuple[float, float]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda _: seen.append((network.body.item(), network.head.weight.item())),  # type: ignore[operator, union-attr]
    )
    trainer.run()
    return seen


def test_the_head_is_trained_first_and_then_the_rest() -> None:
    seen = in_turn(0.5, 4)
    assert [body for body, _ in seen[:2]] == [1.0, 1.0]
    assert seen[0][1] != seen[1][1] == seen[2][1] == seen[3][1]
    assert seen[1][0] != seen[2][0] != seen[3][0]


def test_too_few_steps_and_another_share_are_refused() -> None:
    with pytest.raises(Refused, match=r"one step for each part, found 2 steps with a share of 0\.85; set local_steps"):
        in_turn(0.85, 2)
    with pytest.raises(Refused, match="share: expected a part between 0 and 1, found 1"):
        in_turn(1, 2)
    frozen = Parts()
    frozen.body.requires_grad_(False)
    with pytest.raises(Refused, match="expected a layer of each part, found nothing of the body part to train; leave"):
        in_turn(0.5, 2, frozen)


def by_hand(values: Tensor, guide: Tensor, sigma: float) -> Tensor:
    """One picture's filter by all paths of a tree that Prim's algorithm grows; guides without two equal edges."""
    _, height, width = guide.shape
    flat, count = guide.flatten(1).double(), height * width

    def cost(i: int, j: int) -> float:
        return float((flat[:, i] - flat[:, j]).square().sum())

    near = {
        i: [j for j in range(count) if abs(i // width - j // width) + abs(i % width - j % width) == 1]
        for i in range(count)
    }
    similar = torch.eye(count, dtype=torch.float64)
    inside = [0]
    while len(inside) < count:
        edges = [(cost(i, j), i, j) for i in inside for j in near[i] if j not in inside]
        least, i, j = min(edges)
        for known in inside:
            similar[known, j] = similar[j, known] = similar[known, i] * math.exp(-least / sigma)
        inside.append(j)
    flat_values = values.flatten(1).double()
    return (flat_values @ similar / similar.sum(0)).view_as(values)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4))
def test_the_filter_is_that_of_all_pairs_on_the_tree(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    guide = torch.rand(2, 3, height, width, generator=generator)
    values = torch.rand(2, 2, height, width, generator=generator)
    expected = torch.stack([by_hand(values[at], guide[at], 0.5) for at in (0, 1)])
    torch.testing.assert_close(tree_filtered(values, guide, 0.5).double(), expected, rtol=1e-6, atol=1e-6)


def test_the_filters_gradient_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    guide = torch.rand(2, 1, 3, 4, generator=generator)
    values = torch.rand(2, 1, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tree_filtered(x, guide, 0.3), (values,))


def test_edges_of_equal_pixels_weigh_one_and_a_flat_picture_is_averaged() -> None:
    flat = torch.full((1, 3, 4, 4), 0.5)
    assert spanning_trees(flat, 0.02).weight.eq(1).all()
    values = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(tree_filtered(values, flat, 0.02), torch.full((1, 1, 4, 4), 7.5))


def test_the_energy_of_two_pixels_by_hand() -> None:
    image = torch.zeros(1, 3, 1, 2)
    image[..., 1] = 0.1  # a distance of 0.03, a weight of exp(-1.5)
    weight = math.exp(-1.5)
    chances = torch.tensor([[[[1.0, 0.0]]]])
    apart = weight / (1 + weight)  # of either pixel
    unknown = torch.tensor([[[[False, True]]]])
    both = torch.cat([1 - chances, chances], dim=1)
    for given_, each in ((chances, unknown), (both, unknown)):
        assert tree_energy(given_, image, each, None, sigma=0.02).item() == pytest.approx(2 * apart)
    assert tree_energy(chances, image, ~unknown | unknown, None, sigma=0.02).item() == pytest.approx(2 * apart)
    assert tree_energy(chances, image, unknown & False, None, sigma=0.02).item() == 0
    features = torch.zeros(1, 4, 1, 1)  # all alike: the second filter makes the mean of the first, one half
    assert tree_energy(chances, image, unknown, features, sigma=0.02).item() == pytest.approx(1.0)


def test_numbers_out_of_range_are_refused_together() -> None:
    with pytest.raises(Refused, match=r"(?s)terms#tree#sigma: .*found 0.*terms#tree#step: .*found 0"):
        TreeEnergyTerm(network=Parts(), sigma=0, step=0)


def test_the_variant_trains_and_whole_masks_have_no_tree_energy(build: Any, tmp_path: Path) -> None:
    counts: dict[str, Any] = {"images_per_site": 6, "public": 4, "validation": 2, "test": 2, "size": (64, 64)}
    listed = render_synthetic(tmp_path / "images", sites=2, labelled=True, **counts)
    listed.save(tmp_path / "list.json")
    places = {"datalist": str(tmp_path / "list.json"), "data_root": str(tmp_path / "images")}
    workflow = build("fedicra", **places, **{"before#parts#share": 0.5})
    workflow.run()
    assert workflow.trainer.state.terms["tree"] == 0, "every pixel has a label"
    assert workflow.trainer.state.terms["crf"] > 0
