"""Bytes of a message: exact size, there and back, and nothing that could run."""

from __future__ import annotations

import json
import os
import pickle
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from samfed_monai.core import tensor_file
from samfed_monai.protocol import (
    Envelope,
    Kind,
    MessageRefused,
    from_bytes,
    to_bytes,
    wire_size,
)
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
        ({"kind": "pixels"}, "message -> kind: expected weights, soft_masks, prototypes, adapter, metrics"),
    ],
)
def test_another_header_is_refused(change, reason):
    header = json.dumps({**message().header(), **change})
    with pytest.raises(MessageRefused, match=reason):
        from_bytes(save(weights(), {"samfed": header}))


def masks_message(masks: torch.Tensor | None = None, **changes) -> Envelope:
    masks = torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4) if masks is None else masks
    return message(kind=Kind.SOFT_MASKS, tensors={"masks": masks}, **changes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2**31 - 1))
def test_soft_masks_come_back_to_the_bit_whatever_their_shape(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    sent = masks_message(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    received = from_bytes(to_bytes(sent))
    assert torch.equal(received.tensors["masks"], sent.tensors["masks"])
    assert received.tensors["masks"].shape == tuple(shape)
    assert (received.kind, received.header()) == (Kind.SOFT_MASKS, sent.header())
    assert wire_size(sent) == len(to_bytes(sent))
    received.tensors["masks"].add_(1)  # memory of its own


def test_smooth_masks_shrink_and_noise_grows_by_little():
    ramp = torch.arange(64, dtype=torch.uint8).expand(10, 1, 64, 64)
    assert len(to_bytes(masks_message(ramp))) < 1200 < 10 * 64 * 64
    noise = torch.randint(0, 256, (10, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(to_bytes(masks_message(noise))) < 1.02 * noise.numel() + 1024


def test_other_kinds_travel_as_they_are():
    sent = message(tensors={"w": torch.zeros(1000)})
    assert load(to_bytes(sent))["w"].numel() == 1000
    assert b"shapes" not in to_bytes(sent)[:600]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_soft_masks_of_another_type_are_refused_with_a_reason(dtype):
    sent = masks_message(torch.zeros(1, 1, 2, 2, dtype=dtype))
    for action in (wire_size, to_bytes):
        with pytest.raises(MessageRefused, match=f"message -> tensors: expected torch.uint8, found {dtype}"):
            action(sent)


def forged(content: torch.Tensor | bytes, shapes, kind: Kind = Kind.SOFT_MASKS) -> bytes:
    if isinstance(content, bytes):
        content = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    metadata = {"samfed": json.dumps(masks_message().header() | {"kind": kind.value})}
    return save({"masks": content}, metadata if shapes is None else {**metadata, "shapes": json.dumps(shapes)})


PACKED = zlib.compress(bytes(48))


@pytest.mark.parametrize(
    ("content", "shapes"),
    [
        (PACKED, {"masks": [47]}),
        (PACKED, {"masks": [49]}),
        (PACKED, {"masks": []}),
        (PACKED, {"masks": [-1, 48]}),
        (PACKED, {"masks": [True, 48]}),
        (PACKED, {"masks": [48.0]}),
        (PACKED, {"masks": 48}),
        (PACKED, {"masks": [1] * 9 + [48]}),
        (PACKED, {}),
        (PACKED, {"masks": [48], "other": [1]}),
        (PACKED, [[48]]),
        (PACKED, "masks"),
        (PACKED[:-1], {"masks": [48]}),
        (PACKED[: len(PACKED) // 2], {"masks": [48]}),
        (PACKED + b"more", {"masks": [48]}),
        (b"not deflated", {"masks": [48]}),
        (torch.zeros(48), {"masks": [48]}),
        (PACKED, {"masks": [10**6, 10**6]}),
    ],
)
def test_a_deflated_tensor_that_is_not_what_its_shape_says_is_refused(content, shapes):
    with pytest.raises(MessageRefused, match="message: expected safetensors with a samfed header"):
        from_bytes(forged(content, shapes))


def test_a_decompression_bomb_is_not_inflated():
    import tracemalloc

    bombs = [forged(zlib.compress(bytes(100 * 1024**2)), {"masks": [10]})]
    metadata = {"samfed": json.dumps(masks_message().header())}
    many = {str(index): torch.frombuffer(bytearray(PACKED), dtype=torch.uint8) for index in range(100)}
    metadata["shapes"] = json.dumps({name: [900_000] for name in many})  # each is below the limit, all are above
    bombs.append(save(many, metadata))
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(MessageRefused):
            from_bytes(bomb, max_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 1024**2


@pytest.mark.parametrize(
    ("shapes", "kind", "found"),
    [({"masks": [48]}, Kind.WEIGHTS, "deflated tensors"), (None, Kind.SOFT_MASKS, "plain tensors")],
)
def test_only_soft_masks_are_deflated(shapes, kind, found):
    with pytest.raises(MessageRefused, match=f"message -> tensors: expected soft masks deflated.*found {found}"):
        from_bytes(forged(PACKED, shapes, kind))


def test_metadata_that_is_no_object_is_refused():
    text = json.dumps({"__metadata__": ["samfed"]}).encode()
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(len(text).to_bytes(8, "little") + text)
