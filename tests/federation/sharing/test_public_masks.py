"""A site's side of fusion: which of the server's masks it learns, and what it gives."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.heterogeneous import evenly_spaced
from samfed_monai.protocol import Kind, MessageRefused
from tests.federation.unlike import IMAGES, SERVER_WIDTH, bench, label_masks, toy_net


def spy_on_phase(sharing, monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(sharing.phase, "run", lambda *arguments: calls.append(arguments) or {"supervised": 1.0})
    return calls


def test_it_learns_only_where_the_server_is_better(monkeypatch):
    sharing = bench()
    calls = spy_on_phase(sharing, monkeypatch)
    sharing.network.load_state_dict(toy_net(SERVER_WIDTH).state_dict())
    theirs = sharing.own_masks().clone()
    theirs[2] = label_masks()[2]  # as good as its own but for one image
    assert sharing.receive(1, 3, Kind.SOFT_MASKS, {"masks": theirs}) == {"public_supervised": 1.0}
    round, rounds, masks, gate = calls[0]
    assert (round, rounds) == (1, 3)
    assert torch.equal(masks, theirs)
    assert gate.tolist() == [index == 2 for index in range(IMAGES)]


def test_the_gate_always_opens_all(monkeypatch):
    sharing = bench(gate="always")
    calls = spy_on_phase(sharing, monkeypatch)
    sharing.receive(0, 1, Kind.SOFT_MASKS, {"masks": torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)})
    assert calls[0][3] is None


def test_without_tensors_the_labels_alone_are_learned(monkeypatch):
    sharing = bench()
    calls = spy_on_phase(sharing, monkeypatch)
    sharing.receive(0, 1, Kind.METRICS, {})
    assert calls == [(0, 1)]


def test_weights_of_the_server_become_its_masks_to_the_bit(monkeypatch):
    sharing = bench(width=6)
    calls = spy_on_phase(sharing, monkeypatch)
    sharing.receive(0, 1, Kind.WEIGHTS, dict(toy_net(SERVER_WIDTH).state_dict()))
    server = bench()
    server.network.load_state_dict(toy_net(SERVER_WIDTH).state_dict())
    assert torch.equal(calls[0][2], server.own_masks())


def test_what_it_gives_by_exchange():
    kind, tensors = bench().share()
    assert (kind, tensors["masks"].shape) == (Kind.SOFT_MASKS, (IMAGES, 1, 8, 8))
    sharing = bench(exchange="weights")
    kind, tensors = sharing.share()
    assert kind == Kind.WEIGHTS
    assert tensors.keys() == sharing.network.state_dict().keys()
    assert all(tensors[k].data_ptr() != t.data_ptr() for k, t in sharing.network.state_dict().items())
    assert bench(exchange="none").share() == (Kind.METRICS, {})


@pytest.mark.parametrize(
    ("kind", "tensors", "reason"),
    [
        (Kind.SOFT_MASKS, {"masks": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}, r"expected shape \(6, 1, 8, 8\)"),
        (Kind.SOFT_MASKS, {"masks": torch.zeros(6, 1, 8, 8)}, r"expected torch\.uint8"),
        (Kind.SOFT_MASKS, {"w": torch.zeros(1)}, r"masks: expected shape \(6, 1, 8, 8\), found no such tensor"),
        (Kind.WEIGHTS, dict(toy_net(4).state_dict()), r"0\.weight: expected shape \(5, 3, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step(monkeypatch, kind, tensors, reason):
    sharing = bench()
    calls = spy_on_phase(sharing, monkeypatch)
    with pytest.raises(MessageRefused, match=reason):
        sharing.receive(0, 1, kind, tensors)
    assert calls == []


def test_weights_without_the_servers_architecture_are_refused():
    sharing = bench(**{"sharing#server_network": None})
    with pytest.raises(MessageRefused, match="sharing: expected the server's architecture, found no server_network"):
        sharing.receive(0, 1, Kind.WEIGHTS, dict(toy_net(SERVER_WIDTH).state_dict()))


def test_unknown_options_are_refused_together():
    with pytest.raises((Refused, RuntimeError)) as caught:
        bench(exchange="pixels", gate="never")
    text = str(caught.value.__cause__ or caught.value)
    assert "sharing#exchange: expected one of ['predictions', 'weights', 'none'], found 'pixels'" in text
    assert "sharing#gate: expected one of ['better', 'always'], found 'never'" in text


def test_some_public_images_are_exchanged_and_trained_on():
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(4, 4) is evenly_spaced(4, None) is None
    sharing = bench(**{"sharing#images": 2})
    assert sharing.own_masks().shape[0] == 2
    assert torch.equal(sharing.own_masks(), bench().own_masks()[[0, IMAGES // 2]])
    assert sharing.public_hash != bench().public_hash
    one, other = bench(**{"sharing#images": 1}), bench(**{"sharing#images": 1, "public": "public, repainted"})
    assert torch.equal(one.predictor.labels, other.predictor.labels)
    assert one.public_hash != other.public_hash, "an image that is not exchanged counts, too"
    masks, gate = sharing.phase._placed(sharing.own_masks(), torch.tensor([True, False]))
    assert gate.nonzero().flatten().tolist() == [0]
    assert torch.equal(masks[IMAGES // 2], sharing.own_masks()[1])
    with pytest.raises(RuntimeError) as caught:
        bench(**{"sharing#images": 0})
    assert "sharing#images: expected a number of images >= 1, or null, found 0" in str(caught.value.__cause__)
