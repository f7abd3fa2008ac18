"""Compressed differences: messages, restored weights at both ends, and the residual of the sender."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.tensor_file import checksum
from samfed_monai.core.validators import schema_problems
from samfed_monai.federation.plan import SCHEMA
from samfed_monai.methods.fca import ClientTailored
from samfed_monai.methods.fedavg import FedAvg, PersonalFedAvg
from samfed_monai.methods.fedca import ContrastBeforeLabels
from samfed_monai.methods.fedmd import Consensus
from samfed_monai.methods.fedproto import Prototypes
from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.protocol.compression import (
    BYTES,
    HALF,
    MOST_RANK,
    NONE,
    Compression,
    Sender,
    Step,
    _start_matrix,
    compression_problems,
)
from samfed_monai.protocol.message import Kind, Message, MessageRefused, from_bytes, to_bytes
from samfed_monai.protocol.transport import NOT_HELD, HeldWeights, SentWeights, scrub

FORMS = [HALF, BYTES, 1, 3]


def network(seed: int = 0, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Two matrices, one of them a convolution that no rank makes smaller, a vector, a counter."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "linear.weight": scale * torch.randn(24, 20, generator=draw),
        "depthwise.weight": scale * torch.randn(6, 1, 3, 3, generator=draw),
        "norm.running_var": torch.rand(6, generator=draw),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def changed_weights(base: dict[str, torch.Tensor], seed: int, scale: float = 0.1) -> dict[str, torch.Tensor]:
    step = network(seed, scale)
    return {name: base[name] + step[name] if tensor.ndim > 1 else step[name] for name, tensor in base.items()}


RANK_1 = torch.tensor([[2.0, 4.0, 4.0], [1.0, 2.0, 2.0], [2.0, 4.0, 4.0]]).repeat(3, 3)  # smaller as two factors


@pytest.mark.parametrize(
    ("form", "step", "arrives", "error"),
    [
        (HALF, torch.tensor([[1 + 2**-7, 1 + 2**-9]]), torch.tensor([[1 + 2**-7, 1.0]]), 4e-6),  # 8 bits of a number
        (BYTES, torch.tensor([[127, 2.4], [0, 0], [-1.27, 0.005]]), torch.tensor([[127, 2], [0, 0], [-1.27, 0]]), 4e-6),
        (1, RANK_1, RANK_1, 4 / 127),
    ],
)
def test_restored_step_is_within_error(form, step, arrives, error):
    base, compression = {"w": torch.ones_like(step)}, Compression(form)
    tensors = compression.encode(base, {"w": step})
    assert ("w:right" in tensors) == (form == 1)
    torch.testing.assert_close(compression.decode(tensors, base)["w"] - 1, arrives, atol=error, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20)
@given(shapes=st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=4), min_size=1))
def test_message_form_is_known_in_advance(form, shapes):
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    steps = {name: tensor for name, tensor in weights.items() if tensor.ndim > 1 and tensor.numel()}
    compression = Compression(form)
    tensors = compression.encode(weights, steps)
    forms = [{k: (t.shape, t.dtype) for k, t in made.items()} for made in (tensors, compression.like(weights))]
    assert forms[0] == forms[1]
    restored = compression.decode(tensors, {name: torch.zeros_like(tensor) for name, tensor in weights.items()})
    assert list(restored) == list(weights), "in the order of the base"


@pytest.mark.parametrize("form", FORMS)
def test_residual_is_kept_and_other_tensors_are_sent_unchanged(form):
    sender, wanted, arrived = Sender(Compression(form)), torch.zeros(24, 20), torch.zeros(24, 20)
    base = network()
    for seed in range(5):
        weights = {**changed_weights(base, seed), "statistics.spectrum": torch.rand(4, 5)}
        tensors, after = sender.encode(weights, base)
        for name in ("norm.running_var", "norm.num_batches_tracked", "statistics.spectrum"):
            assert tensors[name] is after[name] is weights[name]
        assert list(after) == list(weights)
        wanted += weights["linear.weight"] - base["linear.weight"]
        arrived += after["linear.weight"] - base["linear.weight"]
        base = {name: after[name] for name in base}
    left = sender.state_dict()["compression.left.linear.weight"]
    torch.testing.assert_close(arrived + left, wanted, atol=2e-6, rtol=0)
    assert left.abs().max() > 1e-6


def test_start_is_deterministic_and_integer_products_are_exact():
    start = _start_matrix(5, 2)
    _start_matrix.cache_clear()
    assert _start_matrix(5, 2).equal(start)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-127, 128, (5, MOST_RANK), generator=generator, dtype=torch.int8) for _ in "lr")
    left[0], right[0] = 127, 127
    ones = torch.ones(5)
    tensors = {"w:codes": left, "w:scales": ones, "w:right": right, "w:right_scales": ones}
    restored = Compression(MOST_RANK).decode(tensors, {"w": torch.zeros(5, 5)})["w"]
    assert restored.tolist() == (left.long() @ right.long().T).tolist()


def test_invalid_step_is_refused_and_state_unchanged():
    base, sender = network(), Sender(Compression(BYTES))
    sender.encode(changed_weights(base, 1), base)
    before = sender.state_dict()
    broken = changed_weights(base, 2)
    broken["linear.weight"][0, 0] = torch.nan
    with pytest.raises(MessageRefused, match="expected finite values, found NaN or infinity"):
        sender.encode(broken, base)
    with pytest.raises(MessageRefused, match="expected the receiver's names and shapes"):
        sender.encode(changed_weights(base, 2), {"linear.weight": torch.ones(2, 2)})
    after = sender.state_dict()
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("form", FORMS)
def test_sender_resumes_from_state(form):
    base, one, other = network(), Sender(Compression(form)), Sender(Compression(form))
    assert one.state_dict().keys() == {"compression.sent"}, "the start is a state as well"
    one.encode(changed_weights(base, 1), base)
    assert other.load_state_dict({**one.state_dict(), "0.exp_avg": torch.ones(1)}).keys() == {"0.exp_avg"}
    first, second = (sender.encode(changed_weights(base, 2), base)[0] for sender in (one, other))
    assert all(first[name].equal(second[name]) for name in first)
    one.load_state_dict({})
    fresh = Sender(Compression(form)).encode(changed_weights(base, 2), base)[0]
    assert not all(first[name].equal(fresh[name]) for name in first), "the residual is used"


def message(weights: dict[str, torch.Tensor], site: str = "a") -> Message:
    return Message(Kind.WEIGHTS, site, 1, 3, tensors=dict(weights), extra={"split": "validation"})


@pytest.mark.parametrize("form", FORMS)
def test_step_is_sent_to_sites_with_previous_model(form, caplog):
    base = network()
    sent, held = SentWeights(), {site: HeldWeights() for site in "ab"}
    for site in "ab":
        held[site].complete(sent.shortened(site, message(base, site)))
    sent.step, model = Step.of(Sender(Compression(form)), changed_weights(base, 1), base)
    sent.forget("b")
    with caplog.at_level(logging.INFO):
        payloads = {site: to_bytes(sent.shortened(site, message(model, site))) for site in "ab"}
    assert len(payloads["a"]) < len(payloads["b"])
    assert [sent.take_whole(), sent.take_whole()] == [{"b": 1}, {}]
    assert "sending b the full model of round 2" in caplog.text
    for site, payload in payloads.items():
        arrived = held[site].complete(from_bytes(payload))
        assert (arrived.kind, arrived.extra) == (Kind.WEIGHTS, {"split": "validation"})
        again = held[site].complete(sent.shortened(site, message(model, site)))
        assert checksum(arrived.tensors) == checksum(again.tensors) == checksum(model), "to the bit"


def test_site_with_other_weights_reports_not_held():
    base = network()
    step, model = Step.of(Sender(Compression(3)), changed_weights(base, 1), base)
    sent = SentWeights()
    sent.shortened("a", message(base))
    sent.step = step
    short = sent.shortened("a", message(model))
    assert (short.kind, short.extra["compression"]) == (Kind.STEP, "3")
    changed = {**short.tensors, "linear.weight:scales": short.tensors["linear.weight:scales"] * 2}
    cut = {**short.tensors, "linear.weight:codes": torch.zeros(1, 1, dtype=torch.int8)}
    for start, sent_here in (
        (None, short),
        (network(7), short),
        ({"x": torch.ones(2)}, short),
        (base, replace(short, tensors=changed)),
        (base, replace(short, tensors=cut)),
        (base, replace(short, extra={**short.extra, "compression": "zip"})),
        (base, replace(short, kind=Kind.WEIGHTS)),
    ):
        held = HeldWeights()
        if start is not None:
            held.complete(message(start))
        for _ in range(2):
            with pytest.raises(MessageRefused) as refused:
                held.complete(sent_here)
            assert scrub(refused.value) == NOT_HELD


@pytest.mark.parametrize("value", [NONE, HALF, BYTES, 1, MOST_RANK, "int4", 0, MOST_RANK + 1, 0.1, True, None])
def test_compression_option_accepts_only_valid_values(value):
    taken = not schema_problems({"bundle": "a", "rounds": 1, "compression": value}, SCHEMA, "plan")
    assert taken == any(value is each for each in (NONE, HALF, BYTES, 1, MOST_RANK))


@pytest.mark.parametrize(
    ("strategy", "value", "noise", "sums", "reasons"),
    [
        (FedAvg(), NONE, True, True, []),
        (FedAvg(), 8, False, False, []),
        (FedAvg(), BYTES, True, False, []),
        (FedAvg(), 8, True, False, [r"noise of differential_privacy has no low rank\), found rank 8"]),
        (FedAvg(), BYTES, False, True, [r"masked updates cannot be compressed\), found secure_aggregation"]),
        (FedAvg(), 8, True, True, ["secure_aggregation", "rank 8"]),
        (Consensus(), BYTES, False, False, ["expected an exchange of weights .*, found an exchange of predictions"]),
        (Prototypes(), BYTES, False, False, ["found an exchange of prototypes"]),
        (LocalOnly(), BYTES, False, False, ["found an exchange of none"]),
        (ClientTailored(), BYTES, False, False, ["found ClientTailored, which makes a model for each site"]),
        (PersonalFedAvg(), BYTES, False, False, ["found PersonalFedAvg, in which each site trains its own network"]),
        (ContrastBeforeLabels(rounds=1), 8, False, False, ["found ContrastBeforeLabels, which repeats the warm start"]),
    ],
)
def test_incompatible_runs_are_refused_with_reason(strategy, value, noise, sums, reasons):
    problems = [str(each) for each in compression_problems(value, strategy, noise=noise, sums=sums)]
    assert len(problems) == len(reasons)
    assert all(re.search(reason, problem) for reason, problem in zip(reasons, problems, strict=True)), problems
