"""Content and bytes of messages: each refusal with its reason, exact sizes, and no executed code."""

from __future__ import annotations

import json
import math
import os
import pickle
import tracemalloc
import warnings
import zlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load, save

from samfed_monai.core import tensor_file
from samfed_monai.protocol import Kind, Message, MessageRefused, from_bytes, to_bytes, wire_size
from samfed_monai.protocol import message as module
from samfed_monai.protocol.message import metric_range
from tests.federation.toys import weights


def up(**changes) -> Message:
    fields = {"kind": Kind.WEIGHTS, "site": "Süd", "round": 2, "rounds": 5, "n": 7, "tensors": weights()}
    return Message(**{**fields, **changes})


def check(message: Message) -> None:
    message.check(up=True, like=weights(), site="Süd", round=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"seconds": 1.5, "term_sam_kd": 0.25, "iterations": 3}, "extra": {"split": "test"}},
        {"tensors": {**weights(), "w": torch.full((2, 3), 3e38)}},  # their sum overflows
        {"n": 10_000_000, "metrics": {"dice": 0.0, "iou": 1.0}},
        {"metrics": {f"term_a{number}": 0.5 for number in range(64)} | {"seconds": 1.0}},
    ],
)
def test_valid_message_passes(changes):
    check(up(**changes))


def test_server_message_is_finite_and_evaluation_may_be_empty():
    up(n=0, tensors={"w": torch.tensor([3e38])}).check(up=False)
    with pytest.raises(MessageRefused, match="message -> tensors: expected finite values, found NaN or infinity"):
        up(n=0, tensors={"w": torch.tensor([0.0, math.inf])}).check(up=False)  # fault 32
    Message(Kind.METRICS, "a", 2, 5, n=0).check(up=True, site="a", round=2)  # fault 38


def test_faults_34_and_40_problems_are_reported_together():
    with pytest.raises(MessageRefused) as caught:
        check(up(round=0, site="b", n=-1, tensors={"w": weights()["w"], "Jane Doe.png": torch.ones(1)}))
    assert [str(problem).partition(",")[0] for problem in caught.value.problems] == [
        "message -> site: expected the sender's own name",
        "message -> round: expected round 2",
        "message -> n: expected a whole number from 1 to 10000000",
        "message -> tensors: expected only the shared tensors of this network",
        "message -> b: expected shape (2",
        "message -> count: expected shape ()",
    ]
    assert "Jane" not in str(caught.value)
    with pytest.raises(MessageRefused, match="refused: 3 problems"):
        check(up(tensors={}))


@pytest.mark.parametrize("kind", Kind)
def test_fault_55_images_in_payload_are_refused(kind):
    with pytest.raises(MessageRefused, match="expected numbers only, found tensors that were not requested"):
        up(kind=kind, tensors={"image": torch.rand(3, 8, 8)}).check(up=True, site="Süd", round=2)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


NAMES = st.text('aä./\\"\n\x00', min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=6))
def test_bytes_match_safetensors_library(shapes):
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
    theirs = load(save(tensors))
    ours = b"".join(tensor_file.pieces(tensors))
    assert len(ours) == tensor_file.size(tensors)
    mine = load(ours)
    assert mine.keys() == theirs.keys()
    assert all(mine[k].dtype == tensors[k].dtype and mine[k].shape == tensors[k].shape for k in tensors)
    assert all(torch.equal(mine[name], tensors[name]) for name in tensors)


@given(NAMES, st.integers(0, 10**7), st.dictionaries(st.sampled_from(["dice", "iou"]), st.floats()))
def test_message_round_trips_with_counted_size(site, n, metrics):
    metrics = {name: value for name, value in metrics.items() if abs(value) < 1e300}
    sent = up(site=site, n=n, metrics=metrics, extra={"split": "test"}, seed=7)
    payload = to_bytes(sent)
    assert wire_size(sent) == len(payload)
    ordered = dict(sorted(metrics.items()))
    assert to_bytes(up(site=site, n=n, metrics=ordered, extra={"split": "test"}, seed=7)) == payload
    received = from_bytes(payload)
    assert received.header() == sent.header()
    assert "tensor" not in repr(received), "no log shows weights"
    assert all(torch.equal(received.tensors[name], sent.tensors[name]) for name in sent.tensors)
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        to_bytes(up(metrics={"dice": math.nan}))


class Canary:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("wrap", [bytes, lambda bytes: len(bytes).to_bytes(8, "little") + bytes])
def test_fault_36_malicious_pickle_is_refused_and_not_run(tmp_path, wrap):
    canary = tmp_path / "canary"
    payload = pickle.dumps({"weights": Canary(str(canary))})
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(wrap(payload))
    assert not canary.exists()
    pickle.loads(payload)
    assert canary.exists(), "the payload was a working one"


def test_fault_37_oversized_payload_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(module, "_header", lambda payload: pytest.fail("decoded"))
    payload = to_bytes(up())
    with pytest.raises(MessageRefused, match=f"message: expected at most 100 bytes, found {len(payload)} bytes"):
        from_bytes(payload, max_bytes=100)


OTHER_FIELDS = "header: expected version, round, rounds, seed, n, kind, site, metrics, extra, found other fields"
NO_OBJECT = json.dumps({"__metadata__": ["samfed"]}).encode()


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"{" * 5000, to_bytes(up())[:-1]),
        len(NO_OBJECT).to_bytes(8, "little") + NO_OBJECT,
    ],
)
def test_invalid_bytes_are_refused(payload):
    with pytest.raises(MessageRefused, match="expected safetensors with a samfed header"):
        from_bytes(payload)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"n": "4"}, "n: expected int, found str"),
        ({"round": True}, "round: expected int, found bool"),
        (
            {"kind": "pixels"},
            "kind: expected weights, step, soft_masks, prototypes, adapter, secure, metrics, found an unknown kind",
        ),
        ({"path": "/data"}, OTHER_FIELDS),
        (["version"], OTHER_FIELDS),
    ],
)
def test_invalid_header_is_refused(header, problem):
    text = json.dumps({**up().header(), **header} if isinstance(header, dict) else header)
    with pytest.raises(MessageRefused) as caught:
        from_bytes(save(weights(), {"samfed": text}))
    assert [str(each) for each in caught.value.problems] == [f"message -> {problem}"]


def masks_message(masks: torch.Tensor | None = None, **changes) -> Message:
    masks = torch.arange(48, dtype=torch.uint8).reshape(3, 1, 4, 4) if masks is None else masks
    return up(kind=Kind.SOFT_MASKS, tensors={"masks": masks}, **changes)


@given(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 2**31 - 1))
@example([1] * 7 + [2], 0)
def test_soft_masks_round_trip(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    sent = masks_message(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, about memory that is not to be written to
        received = from_bytes(to_bytes(sent))
    assert torch.equal(received.tensors["masks"], sent.tensors["masks"])
    assert received.tensors["masks"].shape == tuple(shape)
    assert (received.kind, received.header()) == (Kind.SOFT_MASKS, sent.header())
    assert wire_size(sent) == len(to_bytes(sent))
    received.tensors["masks"].add_(1)  # memory of its own


def test_soft_masks_are_compressed_and_other_kinds_are_plain():
    ramp = torch.arange(64, dtype=torch.uint8).expand(10, 1, 64, 64)
    assert len(to_bytes(masks_message(ramp))) < 1200 < 10 * 64 * 64
    noise = torch.randint(0, 256, (10, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert len(to_bytes(masks_message(noise))) < 1.02 * noise.numel() + 1024
    plain = to_bytes(up(tensors={"w": torch.zeros(1000)}))
    assert load(plain)["w"].numel() == 1000
    assert b"shapes" not in plain[:600]


def test_masks_are_deflated_once_and_again_if_replaced(monkeypatch):
    deflated, deflate = [], module._deflate
    monkeypatch.setattr(module, "_deflate", lambda masks: deflated.append(masks) or deflate(masks))
    sent = masks_message()
    first = to_bytes(sent)
    assert (wire_size(sent), to_bytes(sent), len(deflated)) == (len(first), first, 1)
    assert load(first)["masks"][:2].tolist() == [0x78, 0x01], "RFC 1950: a window of 32 KiB, the fastest level"
    sent.tensors["masks"] = other = torch.full((2, 2), 9, dtype=torch.uint8)
    assert torch.equal(from_bytes(to_bytes(sent)).tensors["masks"], other)
    assert len(deflated) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_soft_masks_of_other_dtype_are_refused(dtype):
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
        (PACKED, {}),
        (PACKED, {"masks": [48], "other": [1]}),
        (PACKED, [[48]]),
        (PACKED, "masks"),
        (PACKED[:-1], {"masks": [48]}),
        (PACKED[: len(PACKED) // 2], {"masks": [48]}),
        (PACKED + b"more", {"masks": [48]}),
        (b"not deflated", {"masks": [48]}),
        (torch.zeros(48), {"masks": [48]}),
    ],
)
def test_deflated_tensor_of_wrong_size_is_refused(content, shapes):
    with pytest.raises(MessageRefused, match="message: expected safetensors with a samfed header"):
        from_bytes(forged(content, shapes))


@pytest.mark.parametrize(
    "shape", [[-1, 48], [-6, -8], [True, 48], [48.0], 48, "48", {}, [1] * 9, None], ids=lambda shape: str(shape)
)
def test_fault_79_invalid_shape_is_refused_before_inflation(shape, monkeypatch):
    monkeypatch.setattr(module.zlib, "decompressobj", lambda: pytest.fail("inflated"))
    with pytest.raises(MessageRefused, match=r"found another format \(ValueError\)"):
        from_bytes(forged(PACKED, {"masks": shape}))


def test_fault_79_decompression_bomb_is_not_inflated():
    bombs = [forged(zlib.compress(bytes(30 * 1024**2)), {"masks": [10]}), forged(PACKED, {"masks": [10**6, 10**6]})]
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
    with pytest.raises(MessageRefused, match="at most 4294967296 bytes, found 1000000000000 bytes once inflated"):
        from_bytes(bombs[1])


@pytest.mark.parametrize(
    ("name", "good", "bad", "what"),
    [("1.norm.running_var", [1.0, 0.0], [1.0, -1e-9], "variances"), ("1.norm.num_batches_tracked", 0, -1, "counters")],
)
def test_faults_89_and_94_negative_variance_or_counter_is_refused(name, good, bad, what):
    like = {name: torch.tensor(good), "1.norm.running_mean": torch.zeros(2)}
    found = Message(Kind.WEIGHTS, "a", 0, 1, n=3, tensors={**like, "1.norm.running_mean": torch.tensor([-1.0, 0.0])})
    found.check(up=True, like=like)
    found.tensors[name] = torch.tensor(bad)
    with pytest.raises(MessageRefused) as refused:
        found.check(up=True, like=like)
    expected = f"message -> tensors: expected non-negative {what}, found 1 with negative values"
    assert [str(problem) for problem in refused.value.problems] == [expected]


def test_fault_79_reader_limits_inflation_of_soft_masks():
    payload = forged(PACKED, {"masks": [48]})
    assert from_bytes(payload, max_inflated=lambda: 48).tensors["masks"].numel() == 48
    with pytest.raises(MessageRefused, match="message -> tensors: expected at most 47 bytes, found 48 bytes once"):
        from_bytes(payload, max_inflated=lambda: 47)

    def limit() -> int:
        raise AssertionError("weights are not inflated")

    assert from_bytes(to_bytes(up()), max_inflated=limit).kind is Kind.WEIGHTS


@pytest.mark.parametrize(
    ("shapes", "kind", "found"),
    [({"masks": [48]}, Kind.WEIGHTS, "deflated tensors"), (None, Kind.SOFT_MASKS, "plain tensors")],
)
def test_deflation_must_match_message_kind(shapes, kind, found):
    with pytest.raises(MessageRefused, match=f"message -> tensors: expected deflated soft masks, .*found {found}"):
        from_bytes(forged(PACKED, shapes, kind))


def with_types(types: dict[str, str], *, bytes_each: int) -> bytes:
    """A message with tensors of two values, declared with types that torch does not write."""
    each = {
        name: {"dtype": dtype, "shape": [2], "data_offsets": [index * bytes_each, (index + 1) * bytes_each]}
        for index, (name, dtype) in enumerate(types.items())
    }
    text = json.dumps({"__metadata__": {"samfed": json.dumps(up().header())}, **each}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(bytes_each * len(types))


@pytest.mark.parametrize(
    ("dtype", "size", "found"),
    [
        ("C64", 8, "torch.complex64"),
        ("F8_E4M3", 1, "torch.float8_e4m3fn"),
        ("F8_E5M2", 1, "torch.float8_e5m2"),
        ("U16", 2, "torch.uint16"),
        ("U64", 8, "torch.uint64"),
    ],
)
def test_fault_93_unsupported_dtypes_are_refused(dtype, size, found):
    payload = with_types({"norm.running_var": dtype}, bytes_each=2 * size)
    with pytest.raises(MessageRefused, match=f"message -> tensors: expected one of torch.float64.*found {found}$"):
        from_bytes(payload)


def test_fault_90_oversized_header_is_not_parsed(monkeypatch):
    assert module.MAX_HEADER == 4 * 1024**2
    sound = to_bytes(up())
    own = int.from_bytes(sound[:8], "little")
    monkeypatch.setattr(module, "MAX_HEADER", own)
    assert from_bytes(sound).n == 7
    monkeypatch.setattr(module, "MAX_HEADER", own - 1)
    monkeypatch.setattr(module, "parse_json", lambda text: pytest.fail("parsed"))
    found = f"message: expected a header of at most {own - 1} bytes, found a header of {own} bytes"
    with pytest.raises(MessageRefused, match=found):
        from_bytes(sound)


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**4000], ids=["large", "small", "longest"])
def test_fault_91_huge_integers_are_refused_and_not_repeated(value):
    sent = from_bytes(to_bytes(up(n=abs(value), round=value, metrics={"dice": value})))
    with pytest.raises(MessageRefused) as caught:
        check(sent)
    large = "less than -1e+20" if value < 0 else "more than 1e+20"
    assert f"message -> metrics -> dice: expected a number from 0 to 1, found {large}" in str(caught.value)
    assert f"message -> round: expected round 2, found round {large}" in str(caught.value)
    assert "message -> n: expected a whole number from 1 to 10000000, found more than 1e+20" in str(caught.value)
    assert len(str(caught.value)) < 500


def with_w(tensor: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    return {"tensors": {**weights(), "w": tensor}}


W, TERM = "message -> w: expected", "expected a number from -1e+09 to 1e+09, found"
FINITE, DICE = "expected a finite number, found", "message -> metrics -> dice: expected a number from 0 to 1, found"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"metrics": {f"term_a{number}": 0.5 for number in range(65)}},  # fault 92: columns of the run's table
            "message -> metrics: expected at most 64 terms, found 65 terms",
        ),
        ({"metrics": {"dice": math.nan}}, f"message -> metrics -> dice: {FINITE} nan"),
        ({"metrics": {"dice": -math.inf}}, f"message -> metrics -> dice: {FINITE} -inf"),
        ({"metrics": {"dice": True}}, f"message -> metrics -> dice: {FINITE} bool"),
        ({"metrics": {"dice": [0.1, 0.2]}}, f"message -> metrics -> dice: {FINITE} list"),
        ({"metrics": {"dice": "/data/Jane Doe.png"}}, f"message -> metrics -> dice: {FINITE} str"),
        ({"metrics": {"dice": 10**20}}, f"{DICE} more than 1e+20"),
        ({"metrics": {"dice": 10**19}}, f"{DICE} {10**19}"),
        ({"metrics": {"dice": -(10**20)}}, f"{DICE} less than -1e+20"),
        ({"metrics": {"dice": 1e300}}, f"{DICE} 1e+300"),
        ({"extra": {"split": "Jane Doe"}}, "message -> extra -> split: expected validation|test, found another value"),
        ({"extra": {"split": 3}}, "message -> extra -> split: expected validation|test, found another value"),
        ({"version": 2}, "message -> version: expected 1, found 2; update both ends"),
        *(
            ({"n": n}, f"message -> n: expected a whole number from 1 to 10000000, found {found}")
            for n, found in ((0, 0), (-1, -1), (10_000_001, 10_000_001), (2.0, 2.0), (True, "bool"), ("7", "str"))
        ),
        *(
            (with_w(torch.tensor([[0.0] * 3, [0.0, 0.0, value]])), f"{W} finite values, found NaN or infinity")
            for value in (math.nan, math.inf, -math.inf)
        ),
        *(
            (with_w(torch.ones(shape)), f"{W} shape (2, 3), found shape {shape}")  # all could be made to fit
            for shape in ((3, 2), (1, 3), (6,), (2, 3, 1))
        ),
        (with_w(torch.ones(2, 3, dtype=torch.float64)), f"{W} torch.float32, found torch.float64"),
        ({"metrics": {"dice": 1.001}}, f"{DICE} 1.001"),
        ({"metrics": {"hd95": -1.0}}, "message -> metrics -> hd95: expected a number from 0 to 1e+06, found -1.0"),
        ({"metrics": {"term_x": -1e10}}, f"message -> metrics -> term_x: {TERM} -10000000000.0"),
        (
            {"tensors": {**weights(), "other": torch.ones(1)}},
            "message -> tensors: expected only the shared tensors of this network, found 1 with "
            "unknown names; give both ends the same bundle, network and personal",
        ),
    ],
)  # fmt: skip
def test_faults_32_to_38_and_58_and_76_and_92_bad_messages_are_refused(changes, problem):
    with pytest.raises(MessageRefused) as caught:
        check(up(**changes))
    assert [str(each) for each in caught.value.problems] == [problem]


def test_fault_58_unlisted_names_are_refused_and_not_repeated():
    with pytest.raises(MessageRefused) as caught:
        check(up(metrics={"/data/Jane Doe.png": 1.0}, extra={"/data/Jane Doe.png": "test"}))
    metrics, extra = map(str, caught.value.problems)
    names = (
        "area, dice, empty_both, empty_label, empty_prediction, expected_dice, expected_images, hd95, iou, iterations, "
        "loss, precision, releases, seconds, sensitivity"
    )
    assert metrics == f"message -> metrics: expected one of {names}, found a name that is not on the list"
    assert extra.startswith("message -> extra: expected one of adapter, base_sam, ")
    assert extra.endswith(", version, withheld, found a name that is not on the list")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("dice", (0.0, 1.0)),
        ("hd95", (0.0, 1e6)),
        *((name, (0, 1e9)) for name in ("seconds", "iterations", "releases")),
        ("loss", (-1e9, 1e9)),
        ("term_sam_kd", (-1e9, 1e9)),
        ("dice_class_14", (0.0, 1.0)),
        ("hd95_class_1", (0.0, 1e6)),
        ("images_class_9", (0, 10_000_000)),
        ("volume_dice", (0.0, 1.0)),
        ("volume_hd95_mm_class_14", (0.0, 1e6)),
        ("volume_n_class_1", (0, 10_000_000)),
        ("quality_images_15", (0, 10_000_000)),
        ("quality_margin_0", (-20.0, 20.0)),
        ("quality_estimate_9", (0.0, 1.0)),
        ("quality_estimate_16", None),
        ("dice_class_15", None),
        ("dice_class_0", None),
        ("dice_class_kidney", None),
        ("term_A", None),
        ("term_", None),
        ("term_/data/Jane Doe", None),
        (3, None),
    ],
)
def test_metric_range_depends_on_name(name, given):
    assert metric_range(name) == given
