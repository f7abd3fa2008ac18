"""Questions to every site before the first round."""

from __future__ import annotations

import pytest

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.federation import LocalTransport
from samfed_monai.federation.controller import ask_all, quorum_of, quorum_problems
from samfed_monai.protocol import Envelope, Kind, MessageRefused, Task
from tests.federation.toys import QUIET, FixedClient


class Unwilling(FixedClient):
    def check(self, extra: dict) -> dict:
        raise MessageRefused([Problem("public set", found="another", expected="the server's")])


class Talkative(FixedClient):
    def check(self, extra: dict) -> dict:
        return {"Jane Doe": 1.0}


def ask(*clients: FixedClient, least: int | None = None) -> None:
    transport = LocalTransport({client.site: client for client in clients}, progress=QUIET)
    messages = {client.site: Envelope(Kind.METRICS, client.site, 0, 1) for client in clients}
    ask_all(transport, Task.CHECK, messages, least=least)


def test_every_site_must_agree_and_all_reasons_are_told():
    ask(FixedClient("a"), FixedClient("b"))
    with pytest.raises(Refused) as caught:
        ask(FixedClient("a"), Unwilling("b"), Unwilling("c"))
    assert [problem.where for problem in caught.value.problems] == ["b", "c"]
    assert "b: expected a site that can take part, found public set: expected the server's" in str(caught.value)


def test_where_a_run_goes_on_a_quorum_is_enough(caplog):
    ask(FixedClient("a"), FixedClient("b"), Unwilling("c"), least=2)
    assert "c does not take part for now: public set" in caplog.text
    with pytest.raises(Refused, match="c: expected a site that can take part"):
        ask(FixedClient("a"), Unwilling("b"), Unwilling("c"), least=2)


def test_an_answer_that_holds_more_than_numbers_on_the_list_is_refused():
    with pytest.raises(Refused, match=r"a: expected a site that can take part, found message -> metrics") as caught:
        ask(Talkative("a"))
    assert "Jane" not in str(caught.value)


@pytest.mark.parametrize(
    ("sites", "quorum", "single", "needed"),
    [(4, None, False, 3), (5, None, False, 3), (1, None, True, 1), (2, 1, False, 2), (2, 1, True, 1), (4, 4, False, 4)],
)
def test_how_many_a_round_needs(sites, quorum, single, needed):
    assert quorum_of(sites, quorum, allow_single_site=single) == needed


@pytest.mark.parametrize(
    ("sites", "quorum", "single", "told"),
    [
        (2, None, False, []),
        (1, None, True, []),
        (1, None, False, ["sites: expected at least 2, so that no update stands alone, found 1; `--allow_single_site"]),
        (2, 3, False, ["quorum: expected a number from 1 to 2, the number of sites, found 3"]),
    ],
)
def test_sites_that_cannot_have_rounds(sites, quorum, single, told):
    found = [str(problem) for problem in quorum_problems(sites, quorum, allow_single_site=single)]
    assert [problem[: len(start)] for problem, start in zip(found, told, strict=True)] == told
