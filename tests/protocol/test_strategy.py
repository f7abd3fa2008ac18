"""What a strategy says of its exchange: once, by one object; and as version 0.1 said it."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.protocol import Exchange, Kind, Server, Strategy


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
    plain = Exchange(Kind.WEIGHTS, own_networks=False, alike=True, server_model=True, tailored=False, mean=False)
    assert Exchange() == plain
    assert FedAvg.exchange == Exchange(mean=True)


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
