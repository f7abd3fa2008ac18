"""FedMD: the unweighted mean of the masks of all sites."""

from __future__ import annotations

import math

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedmd import Consensus, masks_of, scores_of
from samfed_monai.protocol import Kind, Message
from tests.federation.unlike import IMAGES, unlike_server
from tests.methods.rounds import a_round

SITES = ("a", "b", "c")


def answer(site: str, value: int, n: int = 1) -> Message:
    masks = torch.full((IMAGES, 1, 8, 8), value, dtype=torch.uint8)
    return Message(Kind.SOFT_MASKS, site, 0, 2, n=n, tensors={"masks": masks})


def attach(**options) -> Consensus:
    return Consensus(**options).attach(unlike_server(dict.fromkeys(SITES), 2))


def test_consensus_is_unweighted_mean_kept_until_next_answers():
    strategy = attach()
    first = strategy.configure(0)["a"]
    assert (first.kind, first.tensors) == (Kind.METRICS, {}), "no site has answered yet"
    strategy.aggregate(0, {"a": answer("a", 255), "b": answer("b", 255, n=1000), "c": answer("c", 1)})
    sent = strategy.configure(1)
    assert {site: message.kind for site, message in sent.items()} == dict.fromkeys(SITES, Kind.SOFT_MASKS)
    masks = sent["a"].tensors["masks"]
    assert (masks.unique().tolist(), masks.dtype) == ([170], torch.uint8)  # 511 / 3 = 170.33
    strategy.aggregate(1, {})
    assert strategy.masks.unique().tolist() == [170]
    a_round(strategy, {"a": answer("a", 30)}, 2)
    assert strategy.masks.unique().tolist() == [30], "a new round starts from zero"


def test_scores_and_their_mean_match_hand_computed_values():
    scores = scores_of(torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(4, 1, 1, 1)).flatten()
    assert scores.tolist() == pytest.approx([-math.log(509), -math.log(4), math.log(4), math.log(509)])
    classes = scores_of(torch.tensor([51, 204], dtype=torch.uint8).view(1, 2, 1, 1)).flatten()
    assert classes.tolist() == pytest.approx([math.log(0.2), math.log(0.8)])
    one = torch.tensor([204, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    mean = (scores_of(one) + scores_of(torch.tensor([51, 204, 0], dtype=torch.uint8).view(1, 3, 1, 1))) / 2
    # sqrt(0.8 * 0.2) = 0.4 twice, and 0.5 / 255: shares of their sum
    assert masks_of(mean).flatten().tolist() == [127, 127, 1]


@pytest.mark.parametrize("classes", [1, 2])
def test_masks_survive_conversion_to_scores_and_back(classes):
    masks = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    masks = masks if classes == 1 else torch.cat([masks, 255 - masks], dim=1)
    back = masks_of(scores_of(masks)).int() - masks.int()
    assert back[1:255].eq(0).all()  # 0 and 255 mean half a step inside
    assert back.abs().max() <= 1


def test_average_option_selects_arithmetic_or_geometric_mean():
    found = {}
    for average in ("probabilities", "scores"):
        strategy = attach(average=average)
        a_round(strategy, {"a": answer("a", 51), "b": answer("b", 245, n=1000)})
        found[average] = strategy.masks.unique().tolist()
    # odds of 51 / 204 = 1/4 and 245 / 10 = 49/2, of geometric mean 2.4749: 0.71223 of 255
    assert found == {"probabilities": [148], "scores": [182]}


def test_consensus_has_no_state_and_refuses_weights():
    strategy = attach()
    assert (strategy.global_weights, strategy.state_dict()) == ({}, {})
    a_round(strategy, {"a": answer("a", 10)})
    strategy.load_state_dict({}, {})
    assert strategy.masks is None
    with pytest.raises(Refused, match=r"strategy#exchange: expected one of \['predictions'\], .*variant hssf"):
        Consensus(exchange="weights")


def test_expected_masks_need_no_prediction(monkeypatch):
    strategy = attach()
    monkeypatch.setattr(strategy.algorithm.predictor, "masks", lambda network: pytest.fail("a pass over D_p"))
    like = strategy.expected("a")["masks"]
    assert (tuple(like.shape), like.dtype) == ((IMAGES, 1, 8, 8), torch.uint8)
    assert strategy.expected("b")["masks"] is like
