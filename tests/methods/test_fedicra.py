"""FedICRA: the decoder's mixture, head before body, channels by site, and the tree energy against all pairs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from torch import Tensor, nn

from samfed_monai.core.errors import Refused
from samfed_monai.methods import fedicra
from samfed_monai.networks import client_network
from samfed_monai.networks.features import CODES, ChannelSelection, select_channels, selection_of
from samfed_monai.protocol import Kind
from samfed_monai.protocol.message import Message
from samfed_monai.protocol.strategy import Server
from tests.handlers.toy import Shown
from tests.methods import engine_of
from tests.methods.personal import SERVER, SITE, WANTED, Six, numbers_of, six, six_trainer


def build(**options: Any) -> tuple[fedicra.DecoderMixing, Any]:
    network = Six(SITE)
    chosen = torch.optim.AdamW(network.parameters(), lr=0.1)
    settings = {"decoder": ["b"], "rate": 0.1, "batches": 1, "first_batches": 1, "after": 0}
    algorithm = fedicra.DecoderMixing(network=network, optimizer=chosen, site="s", **{**settings, **options})
    return algorithm, six_trainer(network, chosen, [algorithm], WANTED)


def test_decoder_mixture_moves_from_local_to_global() -> None:
    algorithm, _ = build()
    means = algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER))
    # W = 1 gives the own [2, 2]; gradient [0, 4]; times (own - global) = [-2, 4]: W = [1, 1 - 0.1 * 16] clipped to 0
    assert numbers_of(algorithm.network.state_dict()) == [0.0, 1.0, 2.0, 3.0, 2.0, -2.0]
    assert means == {"own": 0.5}
    assert algorithm.optimizer.state == {}


def test_zero_batches_keep_local_decoder_and_global_encoder() -> None:
    algorithm, _ = build(batches=0, first_batches=0)
    assert algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER)) == {"own": 1.0}
    assert numbers_of(algorithm.network.state_dict()) == [*SERVER[:4], *SITE[4:]]


@pytest.mark.parametrize("apart", [0.02, 2.0])
def test_mixing_step_scales_with_squared_difference(apart: float) -> None:
    """With the published step of 1: W leaves 1 by the square of what the local epoch has set two decoders apart."""
    algorithm, _ = build(rate=1.0)
    algorithm.put(six([*SITE[:4], 2.0, -2.0 + apart]))  # the loss pulls to -2, where the global one is
    means = algorithm.receive(1, 3, Kind.WEIGHTS, six([*SERVER[:4], 2.0, -2.0]))
    assert means["own"] == pytest.approx(1 - min(1, apart**2) / 2, abs=1e-6)  # of two weights, one alike in both


def test_mixture_restarts_each_round_after_first_rounds() -> None:
    algorithm, _ = build(after=1, rate=0.02)
    assert algorithm.receive(0, 3, Kind.WEIGHTS, six(SERVER)) == {}
    assert numbers_of(algorithm.network.state_dict()) == SERVER
    for round in (1, 2):
        algorithm.put(six(SITE))
        # the gradient of 16 moves the second of two from 1 to 0.68, and would move it on from there
        assert algorithm.receive(round, 3, Kind.WEIGHTS, six(SERVER)) == {"own": pytest.approx(0.84)}
    alike = {name: tensor.clone() for name, tensor in algorithm.network.state_dict().items()}
    assert algorithm.receive(2, 3, Kind.WEIGHTS, alike) == {}


def test_resumed_site_skips_first_mixture() -> None:
    algorithm, _ = build(first_batches=0)
    assert algorithm.receive(1, 3, Kind.WEIGHTS, six(SERVER)) == {"own": 1.0}
    state = algorithm.state_dict()
    other, _ = build(first_batches=0)
    other.load_state_dict(state)
    assert other.receive(2, 3, Kind.WEIGHTS, six(SERVER)) == {"own": 0.5}
    for forget in (lambda: other.load_state_dict({}), other.reset):
        forget()
        assert not other.state_dict()["begun"]
        other.put(six(SITE))
        assert other.receive(2, 3, Kind.WEIGHTS, six(SERVER)) == {"own": 1.0}
        assert other.state_dict()["begun"]


def test_mixture_runs_more_batches_in_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(fedicra.DecoderMixing, "run_extra", lambda _, *arguments: runs.append(arguments))
    algorithm, _ = build(batches=2, first_batches=5)
    for round in (3, 4, 5):
        algorithm.put(six(SITE))
        algorithm.receive(round, 9, Kind.WEIGHTS, six(SERVER))
    assert runs == [(3, "mixing", 5), (4, "mixing", 2), (5, "mixing", 2)]


def test_decoder_is_all_weights_outside_encoder() -> None:
    parts = {name.partition(".")[0] for name in fedicra.decoder_names(client_network("basic_unet", load=False))}
    assert parts == {"upcat_4", "upcat_3", "upcat_2", "upcat_1", "final_conv"}
    light = client_network("lite0_fpn", load=False)
    names, everything = fedicra.decoder_names(light), {name for name, _ in light.named_parameters()}
    assert everything - names == {name for name in everything if name.startswith("encoder.")} != set()


def test_unknown_decoder_is_refused() -> None:
    for decoder, message in (
        (["dec.*"], r"client_algorithm#decoder: expected at least one, found no name like 'dec\.\*'"),
        ("b", r"""client_algorithm#decoder: expected a list of patterns, found 'b'; .*\["decoder\.\*"\]"""),
        (None, r"(?s)client_algorithm#decoder: expected a network with an encoder.*found Six.*name its"),
    ):
        with pytest.raises(Refused, match=message):
            build(decoder=decoder)


class Parts(nn.Module):
    """A body and a head of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body.expand(len(images), 1))


def train_parts(share: float, steps: int, network: nn.Module | None = None) -> list[tuple[float, float]]:
    """Body and head after each step."""
    network = network or Parts()
    algorithm, _ = build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = six_trainer(network, optimizer, [fedicra.HeadThenBody(algorithm=algorithm, share=share)], [5.0], steps)
    seen: list[tuple[float, float]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda _: seen.append((network.body.item(), network.head.weight.item())),  # type: ignore[operator, union-attr]
    )
    trainer.run()
    return seen


def test_head_is_trained_before_body() -> None:
    seen = train_parts(0.5, 4)
    assert [body for body, _ in seen[:2]] == [1.0, 1.0]
    assert seen[0][1] != seen[1][1] == seen[2][1] == seen[3][1]
    assert seen[1][0] != seen[2][0] != seen[3][0]


def test_too_few_steps_and_frozen_parts_are_refused() -> None:
    frozen = Parts()
    frozen.body.requires_grad_(False)
    steps = r"one step for each part, found 2 steps with a share of 0\.85; set local_steps to 7 or"
    with pytest.raises(Refused, match=steps):
        train_parts(0.85, 2)
    with pytest.raises(Refused, match="expected trainable layers in each part, found none in the body part; remove"):
        train_parts(0.5, 2, frozen)


def filter_by_hand(values: Tensor, guide: Tensor, sigma: float) -> Tensor:
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
        least, i, j = min((cost(i, j), i, j) for i in inside for j in near[i] if j not in inside)
        for known in inside:
            similar[known, j] = similar[j, known] = similar[known, i] * math.exp(-least / sigma)
        inside.append(j)
    return (values.flatten(1).double() @ similar / similar.sum(0)).view_as(values)


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4))
def test_tree_filter_matches_all_pairs_reference(seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    guide = torch.rand(2, 3, height, width, generator=generator)
    values = torch.rand(2, 2, height, width, generator=generator)
    expected = torch.stack([filter_by_hand(values[at], guide[at], 0.5) for at in (0, 1)])
    torch.testing.assert_close(fedicra.tree_filtered(values, guide, 0.5).double(), expected, rtol=1e-6, atol=1e-6)


def test_tree_filter_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(1)
    guide = torch.rand(2, 1, 3, 4, generator=generator)
    values = torch.rand(2, 1, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fedicra.tree_filtered(x, guide, 0.3), (values,))


def test_tree_filter_averages_flat_image() -> None:
    flat = torch.full((1, 3, 4, 4), 0.5)
    assert fedicra.spanning_trees(flat, 0.02).weight.eq(1).all()
    values = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(fedicra.tree_filtered(values, flat, 0.02), torch.full((1, 1, 4, 4), 7.5))


def test_tree_energy_matches_hand_computed_values() -> None:
    image = torch.zeros(1, 3, 1, 2)
    image[..., 1] = 0.1  # a distance of 0.03, a weight of exp(-1.5)
    weight = math.exp(-1.5)
    chances = torch.tensor([[[[1.0, 0.0]]]])
    apart = weight / (1 + weight)  # of either pixel
    unknown = torch.tensor([[[[False, True]]]])
    for given_, each in ((chances, unknown), (torch.cat([1 - chances, chances], dim=1), unknown)):
        assert fedicra.tree_energy(given_, image, each, None, sigma=0.02).item() == pytest.approx(2 * apart)
    assert fedicra.tree_energy(chances, image, ~unknown | unknown, None, sigma=0.02).item() == pytest.approx(2 * apart)
    assert fedicra.tree_energy(chances, image, unknown & False, None, sigma=0.02).item() == 0
    features = torch.zeros(1, 4, 1, 1)  # all alike: the second filter makes the mean of the first, one half
    assert fedicra.tree_energy(chances, image, unknown, features, sigma=0.02).item() == pytest.approx(1.0)


def test_tree_energy_uses_labelled_batch_features() -> None:
    network, generator = Shown(), torch.Generator().manual_seed(3)
    image, other = torch.rand(2, 2, 3, 6, 6, generator=generator)
    label = torch.randint(0, 2, (2, 1, 6, 6), generator=generator).float()
    label[:, :, :, 2:] = 255
    for step in (1, 2):
        term = fedicra.TreeEnergyTerm(network=network, step=step, sigma=0.5)
        term._features.listen()
        output = {"pred": network(image), "image": image, "label": label}
        network(other)
        value = term.value(None, engine_of(output=output))  # type: ignore[arg-type]
        term._features.stop()
        chances, pixels, unknown = (x[..., ::step, ::step] for x in (network(image).sigmoid(), image, label == 255))
        features = network.encoder(image).relu()
        torch.testing.assert_close(value, fedicra.tree_energy(chances, pixels, unknown, features, sigma=0.5))
        assert value > 0.005


def selection(embed: list[list[float]] | None = None) -> ChannelSelection:
    """One channel and two sites: s(z, e) = 2 relu(z - e), e = 3 relu([1, 2] code) by default."""
    module = ChannelSelection(1, 2)
    weights = {"embed.0": embed or [[1.0, 2.0]], "embed.2": [[3.0]], "weigh.0": [[1.0, -1.0]], "weigh.2": [[2.0]]}
    for name, numbers in weights.items():
        module.get_submodule(name).weight.data = torch.tensor(numbers)[:, :, None, None]
    return module


def code(module: ChannelSelection, place: int, sites: int = 2) -> ChannelSelection:
    module.codes[0] = torch.eye(2)[place]
    module.codes[1, :sites] = 1
    return module


NAME = f"encoder.{CODES}"
FEATURES = torch.tensor([[[[1.0, 5.0]]], [[[4.0, 8.0]]]])  # means 3 and 6, maxima 5 and 8


def test_channel_weights_match_hand_computed_values() -> None:
    module = selection()
    # e is 3 for the first site, 6 for the second, 0 for none: s(mean) + s(max) of the two images
    for site, sums in (([1.0, 0.0], [0 + 4, 6 + 10]), ([0.0, 1.0], [0 + 0, 0 + 4]), ([0.0, 0.0], [16, 28])):
        weights = module.channel_weights(FEATURES, torch.tensor(site)).flatten()
        torch.testing.assert_close(weights, torch.tensor(sums).float().sigmoid())
    weighed = code(module, 1)(FEATURES)
    torch.testing.assert_close(weighed[0], 1.5 * FEATURES[0])  # sigmoid(0) is one half
    torch.testing.assert_close(weighed[1], FEATURES[1] * (1 + torch.tensor(4.0).sigmoid()))


def test_others_are_taken_places_except_own() -> None:
    module = ChannelSelection(1, 4)
    assert module.others() == []
    module.codes[0, 1], module.codes[1, :3] = 1, 1
    assert [each.tolist() for each in module.others()] == [[1, 0, 0, 0], [0, 0, 1, 0]]


def contrast(module: ChannelSelection) -> Tensor:
    network = nn.Module()
    network.encoder = nn.Module()
    network.encoder.selection = module
    term = fedicra.SiteContrastTerm(network=network)
    term._features.inputs = [FEATURES, FEATURES + 1]  # the labelled batch's, and the stream's
    return term.value(None, None)  # type: ignore[arg-type]


def test_site_contrast_matches_hand_computed_values() -> None:
    module = code(selection(), 0)
    one, other = torch.tensor([4.0, 16.0]).sigmoid(), torch.tensor([0.0, 4.0]).sigmoid()
    value = contrast(module)
    torch.testing.assert_close(value, -(one - other).square().mean())
    value.backward()
    gradient = module.embed[0].weight.grad.flatten()  # type: ignore[index, union-attr]
    assert gradient[0] != 0
    assert gradient[1] == 0, "the other site's choice is not moved"
    assert contrast(code(selection(), 0, sites=1)).item() == 0
    assert contrast(code(selection([[2.0, 2.0]]), 0)).item() == 0


def test_site_codes_are_sent_and_averaged() -> None:
    weights = {"w": torch.zeros(2), NAME: torch.zeros(2, 3)}
    strategy = fedicra.SiteCodes()
    strategy.attach(Server(["b", "a"], 3, weights=weights))
    messages = strategy.configure(0)
    assert {site: message.tensors[NAME].tolist() for site, message in messages.items()} == {
        "a": [[1, 0, 0], [1, 1, 0]],
        "b": [[0, 1, 0], [1, 1, 0]],
    }
    assert {message.extra["purpose"] for message in messages.values()} == {"distil"}
    assert {(site, message.site, message.round) for site, message in messages.items()} == {("a", "a", 0), ("b", "b", 0)}
    for site, n in (("a", 1), ("b", 3)):
        answer = Message(Kind.WEIGHTS, site, 0, 3, n=n, tensors={**messages[site].tensors, "w": torch.full((2,), n)})
        strategy.accept(0, site, replace(answer, tensors={**answer.tensors, "w": answer.tensors["w"].float()}))
    strategy.finish(0)
    assert strategy.global_weights["w"].tolist() == [2.5, 2.5]
    assert strategy.global_weights[NAME].tolist() == [[0.25, 0.75, 0], [1, 1, 0]]
    assert strategy.configure(1)["b"].tensors[NAME].tolist() == [[0, 1, 0], [1, 1, 0]]
    assert strategy.exchange.mean, "sums under masks and noise at the server do with the mean"


def test_networks_without_site_codes_or_places_are_refused() -> None:
    with pytest.raises(Refused, match=r"strategy: .*found no channel selection; set network_def#site_channels"):
        fedicra.SiteCodes().require_networks({"a": Parts()})
    network = client_network("basic_unet", load=False, site_channels=2)
    fedicra.SiteCodes().require_networks(dict.fromkeys("ab", network))
    with pytest.raises(Refused, match=r"site_channels: expected at most 2, the limit.*, found 3 sites; set it to 3 or"):
        fedicra.SiteCodes().require_networks(dict.fromkeys("abc", network))
    full = fedicra.SiteCodes().attach(Server(["a", "b"], 3, weights={NAME: torch.zeros(2, 2)})).configure(0)
    assert full["b"].tensors[NAME].tolist() == [[0, 1], [1, 1]], "as many sites as places"
    with pytest.raises(Refused, match=r"terms#sites: .*found no channel selection; set network_def#site_channels"):
        fedicra.SiteContrastTerm(network=Parts())
    with pytest.raises(Refused, match=r"site_channels: expected the maximum number of sites >= 2, found 1"):
        client_network("basic_unet", load=False, site_channels=1)
    with pytest.raises(Refused, match=r"(?s)site_channels: .*>= 2, found '3'.*returns its feature maps.*found Parts"):
        select_channels(Parts(), "3")  # type: ignore[arg-type]


def deepest_features(network: nn.Module, image: Tensor) -> Tensor:
    """The deepest features that the network's decoder sees."""
    seen: list[Any] = []
    part: Any = getattr(network, "encoder", getattr(network, "down_4", None))
    hook = part.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        network(image)
    hook.remove()
    return seen[0] if isinstance(seen[0], Tensor) else seen[0][-1]


@pytest.mark.parametrize("name", ["lite0_fpn", "deeplabv3plus_resnet18", "basic_unet"])
def test_channel_selection_works_in_network_and_copy(name: str) -> None:
    torch.manual_seed(0)
    plain = client_network(name, load=False).eval()
    network = client_network(name, load=False, site_channels=2).eval()
    added = network.state_dict().keys() - plain.state_dict().keys()
    assert {key.rpartition(".selection.")[0] for key in added} <= {"encoder", "down_4"}
    assert len(added) == 5
    assert not any("selection" in key for key in fedicra.decoder_names(network)), "it arrives with the encoder"
    network.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(2, 3, 64, 64)
    selection_of(network, "test").weigh[2].weight.data.zero_()  # type: ignore[operator]
    torch.testing.assert_close(deepest_features(network, image), 1.5 * deepest_features(plain, image))
    copied = copy.deepcopy(network)
    selection_of(copied, "test").weigh[2].weight.data.fill_(50.0)  # type: ignore[operator]
    torch.testing.assert_close(deepest_features(network, image), 1.5 * deepest_features(plain, image))
    assert not torch.equal(deepest_features(copied, image), 1.5 * deepest_features(plain, image))
