"""What a strategy says of its exchange: once, by one object; and as version 0.1 said it."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.protocol import Exchange, Kind, Server, Strategy, UpdateGuard


class Silent(Strategy):
    exchange = Exchange(Kind.METRICS, own_networks=True, alike=False, server_model=False)

    def configure(self, round):
        return {}

    def accept(self, round, site, update):
        pass


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (Kind.WEIGHTS, "weights"),
        (Kind.SOFT_MASKS, "predictions"),
        (Kind.PROTOTYPES, "prototypes"),
        (Kind.METRICS, "none"),
    ],
)
def test_what_sites_answer_with_has_a_word(kind, word):
    assert Exchange(kind).word == word


def test_the_default_is_one_network_whose_weights_travel():
    assert FedAvg.exchange == Exchange(Kind.WEIGHTS, own_networks=False, alike=True, server_model=True, tailored=False)


def test_states_are_kept_where_a_site_s_model_is_more_than_the_server_s():
    def keeps(exchange: Exchange, **server: bool) -> bool:
        strategy = FedAvg()
        strategy.exchange = exchange
        return strategy.attach(Server(["a"], 1, **server)).keeps_states  # type: ignore[arg-type]

    assert not keeps(Exchange())
    assert keeps(Exchange(own_networks=True))
    assert keeps(Exchange(tailored=True))
    assert keeps(Exchange(), keeps_parts=True)


def test_without_a_model_of_its_own_the_server_keeps_no_weights_and_sites_evaluate_theirs():
    server = Server(["a"], 1, weights={"w": torch.ones(1)})
    assert Silent().attach(server).global_weights == {}
    assert Silent().attach(server).evaluation("a") is None
    personal = PersonalFedAvg().attach(server)
    assert (personal.evaluation("a"), personal.evaluation("unseen")) == (None, {"w": torch.ones(1)})


def test_the_flags_of_version_0_1_are_still_read():
    message = (
        r"Old: answer_kind, exchange_name, has_model, personal will go with the next version; write exchange = "
        r"Exchange\(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False\)"
    )
    with pytest.warns(FutureWarning, match=message):

        class Old(Silent):
            personal, answer_kind, exchange_name = True, Kind.PROTOTYPES, "prototypes"
            has_model = False

    assert Old.exchange == Exchange(Kind.PROTOTYPES, own_networks=True, alike=False, server_model=False)
    with pytest.warns(FutureWarning, match="Mean: personal will go"):

        class Mean(FedAvg):
            personal = True

    assert Mean.exchange == Exchange(own_networks=True, alike=False)
    with pytest.warns(FutureWarning, match="Same: one_network, personal"):

        class Same(FedAvg):
            personal = True
            one_network = True

    assert Same.exchange == PersonalFedAvg.exchange
    with pytest.warns(FutureWarning, match="Named: exchange_name"):

        class Named(Silent):
            exchange_name = "predictions"

    assert (Named.exchange.answer, Named.exchange.alike) == (Kind.SOFT_MASKS, False)


@pytest.mark.parametrize(
    ("share", "images", "counted"),
    [
        (None, {"a": 1, "b": 10_000_000}, {"a": 1, "b": 10_000_000}),
        (0.5, {"a": 3, "b": 4, "c": 7}, {"a": 3, "b": 4, "c": 7}),  # exactly a half
        (0.5, {"a": 3, "b": 4, "c": 8}, {"a": 3, "b": 4, "c": 7}),
        (0.4, {"a": 20, "b": 90, "c": 1000}, {"a": 20, "b": 40, "c": 40}),  # both above 40 % of 100
        (0.4, {"a": 20, "b": 40, "c": 1000}, {"a": 20, "b": 40, "c": 40}),
        (0.5, {"a": 5, "b": 9}, {"a": 5, "b": 5}),
        (0.2, {"a": 5, "b": 9}, {"a": 1, "b": 1}),  # less than one over the number of sites: all alike
        (0.5, {"a": 9}, {"a": 1}),
        (1.0, {"a": 9}, {"a": 9}),
        (0.5, {}, {}),
    ],
)
def test_a_site_counts_as_no_more_than_its_share_of_all(share, images, counted):
    assert UpdateGuard(largest_share=share).counted(images) == counted


@pytest.mark.parametrize("share", [0, -1, 1.1, True, "0.5"])
def test_a_share_out_of_its_range_is_refused(share):
    with pytest.raises(Refused, match=r"UpdateGuard#largest_share: expected a number in \(0, 1\], or null"):
        UpdateGuard(largest_share=share)
