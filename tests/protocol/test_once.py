"""On its way from a site to the server an update is checked once at each end, sized once and packed once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from samfed_monai.core import tensor_file
from samfed_monai.federation import ClientAlgoSite, LocalTransport
from samfed_monai.privacy import Allowed, ReleaseFilter
from samfed_monai.protocol import Inbox, Kind, Message, MessageRefused, Task, from_bytes, message, to_bytes, wire_size
from samfed_monai.protocol.transport import received

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
MASKS = {"masks": torch.full((2, 1, 4, 4), 128, dtype=torch.uint8)}
UPDATES = [(Kind.WEIGHTS, WEIGHTS), (Kind.SOFT_MASKS, MASKS)]


class Worker(ClientAlgoSite):
    """A site that answers with fixed tensors, through the release filter."""

    def __init__(self, kind: Kind, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__("a", None, ReleaseFilter("a", allowed=lambda: Allowed({kind: tensors})))
        self.kind, self.tensors = kind, tensors

    def _work(self, task: Task, message: Message) -> Message:
        return replace(message, kind=self.kind, n=9, tensors=dict(self.tensors))


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    counted: Counter[str] = Counter()

    def count(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (counted.update([name]), original(*a, **k))[1])

    for module, name in (
        (message, "_finite"),
        (message, "_tensor_problems"),
        (message, "_deflate"),
        (tensor_file, "size"),
        (tensor_file, "pieces"),
    ):
        count(module, name)
    return counted


def inbox(kind: Kind, tensors: dict[str, torch.Tensor]) -> Inbox:
    return Inbox(round=0, sites=["a"], like=lambda site: tensors, kind=kind)


@pytest.mark.parametrize(("kind", "tensors"), UPDATES)
def test_in_one_process(kind, tensors, calls):
    transport = LocalTransport({"a": Worker(kind, tensors)})
    request = Message(Kind.METRICS, "a", 0, 1)
    assert wire_size(request) > 0  # what goes down is sized beforehand, so that it does not count here
    calls.clear()
    taken = inbox(kind, tensors)
    transport.send_and_receive(Task.TRAIN, {"a": request}, on_reply=taken.check)
    masks = int(kind == Kind.SOFT_MASKS)
    # the filter's own look at the numbers calls _tensor_problems without tensors: one of the two is the server's
    assert (calls["_tensor_problems"], calls["size"], calls["pieces"], calls["_deflate"]) == (2, 1, 0, masks)
    assert calls["_finite"] == 2
    assert transport.take_traffic()["a"].up == wire_size(replace(request, kind=kind, n=9, tensors=dict(tensors)))


@pytest.mark.parametrize(("kind", "tensors"), UPDATES)
def test_over_a_wire(kind, tensors, calls):
    request, taken = Message(Kind.METRICS, "a", 0, 1), inbox(kind, tensors)
    payload = to_bytes(Worker(kind, tensors).answer(Task.TRAIN, request))
    reply = received("a", payload, taken.check)
    assert isinstance(reply, Message)
    masks = int(kind == Kind.SOFT_MASKS)
    assert (calls["_tensor_problems"], calls["size"], calls["pieces"], calls["_deflate"]) == (2, 1, 1, masks)
    assert calls["_finite"] == 2


@pytest.mark.parametrize(("kind", "tensors"), UPDATES)
def test_a_size_is_that_of_the_bytes_and_is_counted_anew_when_something_changes(kind, tensors):
    sent = Message(kind, "a", 0, 1, n=9, tensors=dict(tensors))
    before = wire_size(sent)
    payload = to_bytes(sent)
    assert before == len(payload) == wire_size(from_bytes(payload))
    sent.site = "a longer name"
    assert wire_size(sent) == len(to_bytes(sent)) == len(to_bytes(replace(sent)))
    sent.tensors = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
    assert wire_size(sent) == len(to_bytes(sent)) == len(to_bytes(replace(sent)))
    assert all(torch.equal(tensor, sent.tensors[name]) for name, tensor in from_bytes(to_bytes(sent)).tensors.items())


def test_bytes_that_a_site_adds_count_against_its_limit():
    sent = Message(Kind.WEIGHTS, "a", 0, 1, n=9, tensors=dict(WEIGHTS), extra={})
    reply = from_bytes(to_bytes(sent))
    reply._size = 3 * 1024**2  # as a payload with three megabytes of padding would say
    with pytest.raises(MessageRefused, match="expected at most 1048592 bytes, found 3145728 bytes"):
        inbox(Kind.WEIGHTS, WEIGHTS).check("a", reply)
