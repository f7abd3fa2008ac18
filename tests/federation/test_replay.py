"""Fault 45: what was sent before a restart, and is sent again after it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from samfed_monai.core.io import safe_load
from samfed_monai.federation import Interrupted, RunFolder
from samfed_monai.protocol import Inbox, Kind, Message, MessageRefused, from_bytes, to_bytes
from tests.federation.toys import FixedClient, RogueClient, controller, weights


def test_fault_45_a_message_that_an_earlier_process_took_is_refused_by_the_next_one():
    sent = to_bytes(Message(Kind.WEIGHTS, "a", 1, 5, n=7, tensors=weights(4.0)))
    Inbox(round=1, sites=["a", "b"], like=lambda site: weights()).check("a", from_bytes(sent))
    restarted = Inbox(round=2, sites=["a", "b"], like=lambda site: weights())  # knows nothing of the first
    with pytest.raises(MessageRefused, match="message -> round: expected round 2, found round 1"):
        restarted.check("a", from_bytes(sent))
    restarted.check("a", Message(Kind.WEIGHTS, "a", 2, 5, n=7, tensors=weights()))


class Recorder(FixedClient):
    """Keeps its first answer."""

    first: Any = None

    def get_weights(self, extra: dict) -> Any:
        answer = super().get_weights(extra)
        self.first = self.first or deepcopy(answer)
        return answer


def clients(third: FixedClient) -> dict[str, FixedClient]:
    return {"a": FixedClient("a", step=1.0), "b": FixedClient("b", step=2.0), "c": third}


def test_fault_45_a_replayed_update_leaves_the_model_as_it_is_without_that_site(tmp_path):
    def interrupt(answer: Any) -> None:
        raise KeyboardInterrupt

    recorder = Recorder("c", step=30.0)
    before = {**clients(recorder), "a": RogueClient("a", step=1.0, change=interrupt, rounds=[2])}
    with RunFolder(tmp_path / "replayed").open({}) as folder, pytest.raises(Interrupted):
        controller(folder, before, rounds=4).run()

    def replay(answer: Any) -> None:
        answer.clear()
        answer.update(deepcopy(recorder.first))

    def die(answer: Any) -> None:
        raise RuntimeError

    runs = {}
    for name, change in (("replayed", replay), ("without", die)):
        with RunFolder(tmp_path / name).open({}) as folder:
            runs[name] = controller(
                folder, clients(RogueClient("c", step=30.0, change=change, rounds=[2])), rounds=4
            ).run()
    told = [record["sites"]["c"] for record in runs["replayed"].records]
    assert [entry["status"] for entry in told] == ["ok", "ok", "skipped", "ok"]
    assert "found round 0" in told[2]["reason"]
    final = {name: safe_load(tmp_path / name / "rounds/003/global.safetensors") for name in runs}
    assert final["replayed"]["w"].tolist() == final["without"]["w"].tolist()
    # three rounds of all add (1 + 2 + 30) / 3 each, the one without site c (1 + 2) / 2, to weights that start at 1
    assert final["replayed"]["w"][0, 0].item() == 1 + 3 * 11 + 1.5
