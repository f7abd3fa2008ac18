"""Fusion over a public set: the term, the site and the server."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.federation.participants import require_starts
from samfed_monai.federation.workflow import client_config
from samfed_monai.handlers.public_images import evenly_spaced
from samfed_monai.losses import distillation_kl
from samfed_monai.methods import heterogeneous
from samfed_monai.protocol import Kind, Message, MessageRefused
from tests.federation.unlike import IMAGES, SERVER_WIDTH, label_masks, server_algorithm, toy_net, unlike_server
from tests.methods import engine_of
from tests.methods.rounds import a_round


def output() -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(2.0), "pred": torch.zeros(2, 1, 2, 2)}


def test_closed_gate_counts_as_zero_in_mean():
    target = torch.full((2, 1, 2, 2), 0.9)
    engine = engine_of(batch={"target": target, "target_gate": torch.tensor([1.0, 0.0])}, output=output())
    heterogeneous.PublicDistillationTerm(weight=3.0, temperature=2.0)(engine)
    single = distillation_kl(torch.zeros(1, 1, 2, 2), target[:1], 2.0).item()
    assert engine.state.terms["public_kd"].item() == pytest.approx(single / 2)
    assert engine.state.terms["public_kd_gate"].item() == 0.5
    assert engine.state.output["loss"].item() == pytest.approx(2 + 3 * single / 2)
    assert engine.state.terms["supervised"].item() == 2.0
    engine = engine_of(batch={}, output=output())  # without targets nothing is added
    heterogeneous.PublicDistillationTerm()(engine)
    assert engine.state.output["loss"].item() == 2.0
    assert engine.state.terms.keys() == {"supervised"}


def spy_on_phase(algorithm, monkeypatch) -> list:
    calls = []
    monkeypatch.setattr(algorithm, "run", lambda *arguments: calls.append(arguments) or {"supervised": 1.0})
    return calls


def test_site_learns_only_where_server_is_better(monkeypatch):
    algorithm = server_algorithm()
    calls = spy_on_phase(algorithm, monkeypatch)
    algorithm.network.load_state_dict(toy_net(SERVER_WIDTH).state_dict())
    theirs = algorithm.own_masks().clone()
    theirs[2] = label_masks()[2]  # as good as its own but for one image
    assert algorithm.receive(1, 3, Kind.SOFT_MASKS, {"masks": theirs}) == {"public_supervised": 1.0}
    round, rounds, masks, gate = calls[0]
    assert (round, rounds) == (1, 3)
    assert torch.equal(masks, theirs)
    assert gate.tolist() == [index == 2 for index in range(IMAGES)]


def test_always_gate_and_empty_messages_pass_no_gate(monkeypatch):
    algorithm = server_algorithm(gate="always")
    calls = spy_on_phase(algorithm, monkeypatch)
    algorithm.receive(0, 1, Kind.SOFT_MASKS, {"masks": torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)})
    assert calls[0][3] is None
    algorithm.receive(0, 1, Kind.METRICS, {})
    assert calls[1] == (0, 1)


def test_server_weights_are_converted_to_server_masks(monkeypatch):
    algorithm = server_algorithm(width=6)
    calls = spy_on_phase(algorithm, monkeypatch)
    algorithm.receive(0, 1, Kind.WEIGHTS, dict(toy_net(SERVER_WIDTH).state_dict()))
    server = server_algorithm()
    server.network.load_state_dict(toy_net(SERVER_WIDTH).state_dict())
    assert torch.equal(calls[0][2], server.own_masks())


def test_share_follows_exchange_option():
    kind, tensors = server_algorithm().share()
    assert (kind, tensors["masks"].shape) == (Kind.SOFT_MASKS, (IMAGES, 1, 8, 8))
    algorithm = server_algorithm(exchange="weights")
    kind, tensors = algorithm.share()
    assert kind == Kind.WEIGHTS
    assert tensors.keys() == algorithm.network.state_dict().keys()
    assert all(tensors[k].data_ptr() != t.data_ptr() for k, t in algorithm.network.state_dict().items())
    assert server_algorithm(exchange="none").share() == (Kind.METRICS, {})


@pytest.mark.parametrize(
    ("kind", "tensors", "reason"),
    [
        (Kind.SOFT_MASKS, {"masks": torch.zeros(5, 1, 8, 8, dtype=torch.uint8)}, r"expected shape \(6, 1, 8, 8\)"),
        (Kind.SOFT_MASKS, {"masks": torch.zeros(6, 1, 8, 8)}, r"expected torch\.uint8"),
        (Kind.SOFT_MASKS, {"w": torch.zeros(1)}, r"masks: expected shape \(6, 1, 8, 8\), found no such tensor"),
        (Kind.WEIGHTS, dict(toy_net(4).state_dict()), r"0\.weight: expected shape \(5, 3, 3, 3\)"),
    ],
)
def test_invalid_messages_are_refused_before_training(monkeypatch, kind, tensors, reason):
    algorithm = server_algorithm()
    calls = spy_on_phase(algorithm, monkeypatch)
    with pytest.raises(MessageRefused, match=reason):
        algorithm.receive(0, 1, kind, tensors)
    assert calls == []


def test_fault_79_expected_pixel_count_is_known_before_masks():
    algorithm = server_algorithm()
    assert algorithm._own_masks is None
    before = algorithm.max_mask_pixels()
    assert algorithm._own_masks is None, "no mask is made for it"
    assert before == algorithm.own_masks().numel() == algorithm.max_mask_pixels() > 0
    assert [server_algorithm(exchange=name).max_mask_pixels() for name in ("weights", "none")] == [0, 0]
    algorithm = server_algorithm(**{"client_algorithm#server_network": None})
    with pytest.raises(MessageRefused, match="algorithm: expected the server's architecture, found no server_network"):
        algorithm.receive(0, 1, Kind.WEIGHTS, dict(toy_net(SERVER_WIDTH).state_dict()))


def test_subset_of_public_images_is_exchanged():
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(4, 4) is evenly_spaced(4, None) is None
    algorithm = server_algorithm(**{"client_algorithm#images": 2})
    assert algorithm.own_masks().shape[0] == 2
    assert torch.equal(algorithm.own_masks(), server_algorithm().own_masks()[[0, IMAGES // 2]])
    assert algorithm.public_hash != server_algorithm().public_hash
    one, other = (
        server_algorithm(**{"client_algorithm#images": 1}),
        server_algorithm(**{"client_algorithm#images": 1, "public": "public, repainted"}),
    )
    assert torch.equal(one.predictor.labels, other.predictor.labels)
    assert one.public_hash != other.public_hash, "an image that is not exchanged counts, too"
    masks, gate = algorithm._for_all_images(algorithm.own_masks(), torch.tensor([True, False]))
    assert gate.nonzero().flatten().tolist() == [0]
    assert torch.equal(masks[IMAGES // 2], algorithm.own_masks()[1])


SITES = ("a", "b")


def attach(**options) -> heterogeneous.CondensationFusion:
    return heterogeneous.CondensationFusion(**options).attach(unlike_server(dict.fromkeys(SITES), 2))


def answer(site: str, masks: torch.Tensor) -> Message:
    return Message(Kind.SOFT_MASKS, site, 0, 2, n=4, tensors={"masks": masks})


def test_server_learns_from_most_reliable_site(monkeypatch):
    strategy = attach(floor=0.5)
    calls = spy_on_phase(strategy.algorithm, monkeypatch)
    good, empty = label_masks(), torch.zeros(IMAGES, 1, 8, 8, dtype=torch.uint8)
    first, second = good.clone(), empty.clone()
    first[3:], second[3:] = empty[3:], good[3:]  # each knows one half
    a_round(strategy, {"a": answer("a", first), "b": answer("b", second)})
    (round, rounds, masks, gate) = calls[0]
    assert (round, rounds) == (0, 2)
    assert torch.equal(masks, good)
    assert gate.tolist() == [True] * IMAGES


def test_sites_below_floor_or_server_are_ignored(monkeypatch):
    best = label_masks()
    for floor, expected in ((0.99, False), (0.0, True)):
        strategy = attach(floor=floor)
        calls = spy_on_phase(strategy.algorithm, monkeypatch)
        reliability = strategy.algorithm.predictor.reliability(best)
        assert (reliability < 0.99).any()
        a_round(strategy, {"a": answer("a", best)})
        low = reliability < 0.99
        assert calls[0][3][low].tolist() == [expected] * int(low.sum())
    strategy = attach(floor=0.0)
    calls = spy_on_phase(strategy.algorithm, monkeypatch)
    a_round(strategy, {"a": answer("a", strategy.algorithm.own_masks().clone())})
    assert not calls[0][3].any(), "as reliable as the server is not better"


def test_round_without_answers_does_not_train_server(monkeypatch):
    strategy = attach()
    calls = spy_on_phase(strategy.algorithm, monkeypatch)
    strategy.configure(0)
    strategy.accept(0, "a", answer("a", label_masks()))
    a_round(strategy, {})
    assert calls == []


def test_messages_follow_exchange_option():
    masks = attach()
    sent = masks.configure(0)["a"]
    assert (sent.kind, sent.tensors.keys()) == (Kind.SOFT_MASKS, {"masks"})
    assert sent.extra == {"purpose": "distil", **masks.requirements()}
    assert (sent.tensors["masks"].shape, sent.tensors["masks"].dtype) == ((IMAGES, 1, 8, 8), torch.uint8)
    assert masks.expected("a")["masks"].shape == (IMAGES, 1, 8, 8)
    assert (masks.exchange.answer, masks.exchange.word) == (Kind.SOFT_MASKS, "predictions")
    assert masks.evaluation("a") is None, "a site has its own network, an unseen hospital the server's"
    assert masks.evaluation("elsewhere") is masks.global_weights
    weights = attach(exchange="weights")
    sent = weights.configure(0)["a"]
    assert sent.kind == Kind.WEIGHTS
    assert sent.tensors["0.weight"].shape[0] == SERVER_WIDTH
    assert weights.expected("a")["0.weight"].shape[0] == 4, "the site's own network"
    assert (weights.exchange.answer, weights.exchange.word) == (Kind.WEIGHTS, "weights")


def test_server_training_keeps_global_random_state():
    strategy = attach(floor=0.0)
    strategy.configure(0)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    strategy.aggregate(0, {"a": answer("a", label_masks())})
    assert torch.equal(torch.rand(1), expected)


def test_most_reliable_site_must_exceed_server_and_floor():
    sites = torch.tensor([[0.9, 0.8, 0.75, 0.76, 0.9], [0.8, 0.95, 0.5, 0.2, 0.9]])
    site, gate = heterogeneous.most_reliable(sites, torch.tensor([0.5, 0.95, 0.1, 0.1, 0.89]), 0.75)
    assert site.tolist() == [0, 1, 0, 0, 0], "the first among equals"
    assert gate.tolist() == [True, False, False, True, True], "equal to the server, or to the floor, is not above it"


def test_default_networks_need_only_mobile_sam_weights(tmp_path, monkeypatch):
    (tmp_path / "mobile_sam.pt").touch()
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    config = client_config(find_bundle("samfed_skin"), "heterogeneous", {})
    names = [*config.value("mixed_networks"), config.value("server_network")]
    assert len(set(names)) == 2
    require_starts(config, names)
    with pytest.raises(Refused, match="samfed weights efficientnet_lite0"):
        require_starts(config, ["lite0_fpn"])


def test_invalid_options_are_refused_together():
    more = {"images": "0", "passes": 0, "mask_size": 0}
    wrong = {f"client_algorithm#{name}": value for name, value in more.items()}
    with pytest.raises((Refused, RuntimeError)) as caught:
        server_algorithm(**wrong, exchange="pixels", gate="never")
    text = str(caught.value.__cause__ or caught.value)
    assert "client_algorithm#exchange: expected one of ['predictions', 'weights', 'none'], found 'pixels'" in text
    assert "client_algorithm#gate: expected one of ['better', 'always'], found 'never'" in text
    assert "client_algorithm#images: expected a number of images >= 1, or null, found '0'" in text
    assert "client_algorithm#passes: expected a number of passes >= 1, found 0" in text
    assert "client_algorithm#mask_size: expected a number of pixels >= 1, or null, found 0" in text
