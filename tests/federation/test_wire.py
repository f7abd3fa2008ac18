"""Bytes of a message: exact size, there and back, and nothing that could run."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from samfed_monai.federation import Envelope, Kind, MessageRefused, from_bytes, tensor_file, to_bytes, wire_size
from tests.federation.toys import weights

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def message(**changes) -> Envelope:
    fields = {"kind": Kind.WEIGHTS, "site": "Klinik Süd", "round": 3, "rounds": 9, "n": 4, "tensors": weights(0.5)}
    return Envelope(**{**fields, **changes})


def test_there_and_back():
    sent = message(metrics={"dice": 0.1 + 0.2}, extra={"split": "test"}, seed=7)
    received = from_bytes(to_bytes(sent))
    assert received.header() == sent.header()
    assert all(torch.equal(received.tensors[name], sent.tensors[name]) for name in sent.tensors)


def test_bytes_are_a_safetensors_file():
    assert torch.equal(load(to_bytes(message()))["w"], weights(0.5)["w"])


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=6,
    )
)
def test_written_bytes_are_those_of_the_safetensors_library(shapes):
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
    theirs = load(save(tensors))
    ours = b"".join(tensor_file.pieces(tensors))
    assert len(ours) == tensor_file.size(tensors)
    mine = load(ours)
    assert mine.keys() == theirs.keys()
    assert all(mine[k].dtype == tensors[k].dtype and mine[k].shape == tensors[k].shape for k in tensors)
    assert all(torch.equal(mine[name], tensors[name]) for name in tensors)


@settings(max_examples=25, deadline=None)
@given(
    st.text(min_size=1, max_size=20),
    st.integers(0, 10**7),
    st.dictionaries(st.sampled_from(["dice", "iou"]), st.floats()),
)
def test_size_is_counted_without_writing(site, n, metrics):
    metrics = {name: value for name, value in metrics.items() if abs(value) < 1e300}
    sent = message(site=site, n=n, metrics=metrics)
    assert wire_size(sent) == len(to_bytes(sent))
    assert from_bytes(to_bytes(sent)).header() == sent.header()


class Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [lambda bytes: bytes, lambda bytes: len(bytes).to_bytes(8, "little") + bytes])
def test_fault_36_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, wrap):
    canary = tmp_path / "canary"
    payload = pickle.dumps({"weights": Canary(str(canary))})
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(wrap(payload))
    assert not canary.exists()
    pickle.loads(payload)
    assert canary.exists(), "the payload was a working one"


def test_fault_37_an_oversized_payload_is_refused_before_it_is_decoded(monkeypatch):
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load", lambda payload: pytest.fail("decoded"))
    payload = to_bytes(message())
    with pytest.raises(MessageRefused, match=f"message: expected at most 100 bytes, found {len(payload)} bytes"):
        from_bytes(payload, max_bytes=100)


@pytest.mark.parametrize("payload", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"{" * 5000])
def test_other_bytes_are_refused(payload):
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(payload)


def test_a_truncated_message_is_refused():
    with pytest.raises(MessageRefused, match="expected safetensors"):
        from_bytes(to_bytes(message())[:-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/data"}, "message -> header: expected version, kind"),
        ({"n": "4"}, "message -> n: expected int, found str"),
        ({"round": True}, "message -> round: expected int, found bool"),
        ({"kind": "pixels"}, "message -> kind: expected weights, soft_masks, prototypes, metrics"),
    ],
)
def test_another_header_is_refused(change, reason):
    header = json.dumps({**message().header(), **change})
    with pytest.raises(MessageRefused, match=reason):
        from_bytes(save(weights(), {"samfed": header}))
