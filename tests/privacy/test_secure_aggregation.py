"""Secure aggregation: rounds, repeated sums, and the masks of single vectors."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Stopped
from samfed_monai.federation import ClientAlgoSite, RunFolder
from samfed_monai.methods.fedavg import FedAvg
from samfed_monai.privacy import SecureAggregation, read_audit, secure_aggregation
from samfed_monai.privacy.audit import json_lines
from samfed_monai.protocol import Kind, Message, MessageRefused, Task, UpdateGuard
from samfed_monai.reports import Report
from samfed_monai.results import validate_results
from tests.federation.test_job import job
from tests.federation.toys import FixedClient, controller, model_of, weights

SETTINGS = SecureAggregation()


class SecureWorker(ClientAlgoSite):
    """A site of three that adds its update under masks; it may fail in a step or send forged keys."""

    def __init__(self, site, client, sums, *, fails=None, forged=None):
        super().__init__(site, client)
        self.adder = secure_aggregation.SecureSite(site, "abc", SETTINGS, sums / f"{site}.jsonl", "plan")
        self.fails, self.forged, self.sent = fails, forged, []

    def answer(self, task, message):
        task = Task(task)
        if task == self.fails:
            raise RuntimeError("the line is dead")
        reply = self.adder.answer(task, message) if task in secure_aggregation.STEPS else super().answer(task, message)
        reply = self.adder.hold(reply) if task == Task.TRAIN else reply
        if task == Task.KEYS and self.forged is not None:
            reply.tensors["table"] = self.forged
        self.sent.append((task, reply))
        return reply


CLIENTS = {"a": {"step": 1.0, "n": 1}, "b": {"step": 3.0, "n": 3}, "c": {"step": -0.125, "n": 6}}


def run(folder, *, rounds=1, fails=None, forged=None, plain=False, clients=None, cut=False, **options):
    """A run's result, its workers, and what the server unmasked, round by round: the sum of n and of n w.

    Args:
        fails: site to the step in which it does.
        forged: the keys that b shows.
        cut: whether power fails between what the server learned and what it wrote.
    """
    made = clients or {site: FixedClient(site, **given) for site, given in CLIENTS.items()}
    workers = {site: SecureWorker(site, client, folder, fails=(fails or {}).get(site)) for site, client in made.items()}
    workers["b"].forged, seen = forged, []
    with RunFolder(folder).open({}) as opened:
        conductor = controller(opened, made if plain else workers, rounds=rounds, **options)
        if not plain:
            begun = folder / "secure_sum.json"
            conductor.secure = secure_aggregation.SecureServer(SETTINGS, conductor.strategy, conductor.transport, begun)
        take = conductor.strategy.take

        def looked_at(round, site, update):
            seen.append((update.n, update.n * update.tensors["w"].double()))
            take(round, site, update)

        conductor.strategy.take = looked_at
        if not cut:
            return conductor.run(), workers, seen
        opened.write_round = Mock(side_effect=RuntimeError("power was cut"))
        with pytest.raises(RuntimeError, match="power was cut"):
            conductor.run()
        return None, workers, seen


def test_secure_sum_equals_plain_mean(tmp_path):
    result, *_ = run(tmp_path / "secure", rounds=2)
    run(tmp_path / "plain", rounds=2, plain=True)
    for round in (0, 1):
        secure, plain = model_of(tmp_path / "secure", round), model_of(tmp_path / "plain", round)
        for name in ("w", "b"):
            # rounding to 2^-32 at each site, and to float32 in both means
            assert torch.allclose(secure[name], plain[name], rtol=2**-22, atol=2**-31)
        assert secure["count"].item() == plain["count"].item() == round + 1
    entry = result.records[1]["sites"]["c"]
    assert (entry["status"], entry["n"]) == ("ok", 6)
    run(tmp_path / "other", rounds=2)  # with masks of its own; the sum is of whole numbers
    one, other = model_of(tmp_path / "secure", 1), model_of(tmp_path / "other", 1)
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_sent_messages_do_not_contain_update(tmp_path):
    _, workers, _ = run(tmp_path)
    sent = dict(workers["a"].sent)
    assert sent[Task.TRAIN].tensors == {}
    assert (sent[Task.TRAIN].kind, sent[Task.TRAIN].n) == (Kind.METRICS, 1)
    own = {name: tensor + 1 for name, tensor in weights().items()}
    plain = torch.from_numpy(secure_aggregation.as_vector(own, weight=1, fraction_bits=32, members=3))
    masked = sent[Task.MASKED].tensors["masked"]
    assert masked.shape == plain.shape
    assert not (masked == plain).any()
    tables = [tensor for task in (Task.KEYS, Task.SHARES, Task.UNMASK) for tensor in sent[task].tensors.values()]
    assert {tensor.dtype for tensor in tables} == {torch.uint8}
    assert sum(tensor.numel() for tensor in tables) < 1000, "keys and shares, and no model"


@pytest.mark.parametrize("step", [Task.TRAIN, Task.KEYS, Task.SHARES, Task.MASKED, Task.UNMASK])
def test_site_dropout_at_any_step_is_handled(tmp_path, step):
    result, *_ = run(tmp_path, fails={"b": step})
    mean = (1 * 1 + 6 * -0.125) / 7 if step != Task.UNMASK else (1 * 1 + 3 * 3 + 6 * -0.125) / 10
    assert model_of(tmp_path)["w"].flatten().tolist() == pytest.approx([1 + mean] * 6, abs=1e-6)
    assert result.records[0]["sites"]["b"]["status"] == ("ok" if step == Task.UNMASK else "skipped")


@pytest.mark.parametrize("step", [Task.KEYS, Task.SHARES, Task.MASKED, Task.UNMASK])
def test_run_stops_below_threshold(tmp_path, step):
    with pytest.raises(Stopped, match=r"round 1 of 1: 1 updates to add, 2 needed\n  - b: RuntimeError") as error:
        run(tmp_path, fails={"b": step, "c": step})
    assert "- c: RuntimeError" in str(error.value)
    assert not (tmp_path / "rounds/000").exists()
    with pytest.raises(Stopped, match="2 of 3 updates, 3 needed"):  # a quorum counts updates that are in the sum
        run(tmp_path / "quorum", fails={"b": Task.MASKED}, quorum=3)


def test_resumed_run_is_bitwise_equal(tmp_path):
    run(tmp_path / "whole", rounds=3)
    run(tmp_path / "stopped", rounds=1)
    run(tmp_path / "stopped", rounds=3)
    assert model_of(tmp_path / "whole", 2)["w"].equal(model_of(tmp_path / "stopped", 2)["w"])


def test_site_without_images_is_refused(tmp_path):
    with pytest.raises(MessageRefused, match="message -> n: expected at least 1, found 0"):
        secure_aggregation.SecureServer(SETTINGS, FedAvg(), None, tmp_path).take(
            0, "a", Message(Kind.METRICS, "a", 0, 1)
        )


class Spoiler(FixedClient):
    """Its update makes a negative variance of the mean."""

    def train(self, data, extra):
        super().train(data, extra)
        self.weights["x.running_var"] -= 1e4


def test_invalid_sum_stops_run(tmp_path):
    start = {**weights(), "x.running_var": torch.ones(2)}
    clients = {site: (Spoiler if site == "b" else FixedClient)(site, n=1) for site in "abc"}
    expected = r"the sum of the updates is not a model \(.*negative values.*\); the faulty update cannot be identified"
    with pytest.raises(Stopped, match=expected):
        run(tmp_path, clients=clients, start=start)


def test_guard_clips_step_of_mean(tmp_path):
    run(tmp_path, clients={site: FixedClient(site, step=100.0) for site in "abc"}, guard=UpdateGuard(limit=1.0))
    assert model_of(tmp_path)["w"].flatten().tolist() == pytest.approx([2.0] * 6)


TRAINED = Message(Kind.WEIGHTS, "a", 0, 2, n=2, tensors=weights(), metrics={"seconds": 1.0})


def server_message(tensors=None, round=0):
    return Message(Kind.SECURE, "a", round, 2, tensors=tensors or {})


@pytest.fixture
def site(tmp_path):
    """Site a of three, after its training."""
    made = secure_aggregation.SecureSite("a", "abc", SETTINGS, tmp_path / "sums.jsonl", "plan")
    for task in secure_aggregation.STEPS:
        with pytest.raises(MessageRefused, match=f"{task.value} out of order"):
            made.answer(task, server_message())
    numbers = replace(TRAINED, tensors={})
    assert made.hold(numbers) is numbers
    left = made.hold(TRAINED)
    assert (left.kind, left.tensors, left.metrics) == (Kind.METRICS, {}, {"seconds": 1.0})
    return made


@pytest.mark.parametrize("task", secure_aggregation.STEPS[1:])
def test_steps_out_of_order_are_refused(site, task):
    for wrong, message in ((Task.KEYS, server_message(round=1)), (task, server_message())):
        with pytest.raises(MessageRefused, match=f"{wrong.value} out of order"):
            site.answer(wrong, message)
    site.answer(Task.KEYS, server_message())
    with pytest.raises(MessageRefused, match="keys out of order"):
        site.answer(Task.KEYS, server_message())


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"table": torch.zeros(3, 63, dtype=torch.uint8)},
        {"table": torch.zeros(2, 64, dtype=torch.uint8)},
        {"table": torch.zeros(3, 64, dtype=torch.int8)},
    ],
)
def test_malformed_table_is_refused_and_ends_round(site, tensors):
    site.answer(Task.KEYS, server_message())
    with pytest.raises(MessageRefused, match="secure aggregation: expected 3 rows of 64 bytes, found another table"):
        site.answer(Task.SHARES, server_message(tensors))
    for task in secure_aggregation.STEPS:
        with pytest.raises(MessageRefused, match="out of order"):
            site.answer(task, server_message())


class Growing(FixedClient):
    """Its step grows with the round, so that no two rounds are equal."""

    def train(self, data, extra):
        step, self.step = self.step, self.step * (extra["round"] + 1)
        super().train(data, extra)
        self.step = step


def run_again(folder, *, away=(), fails=None, **options):
    """A run of new processes with the files of earlier ones; returns the unmasked sums and the result."""
    clients = {site: Growing(site, **given) for site, given in CLIENTS.items()}
    fails = {**dict.fromkeys(away, Task.TRAIN), **(fails or {})}
    result, _, seen = run(folder, clients=clients, fails=fails, **options)
    return seen, result


def test_repeated_round_with_missing_site_is_skipped(tmp_path, caplog):
    seen, _ = run_again(tmp_path, cut=True, rounds=2)
    assert len(seen) == 1
    again, result = run_again(tmp_path, away="c", rounds=2)
    why = "the round is skipped: its sum started with a, b, c, but c did not return; a sum of the others would"
    assert f"round 1 of 2: {why}" in caplog.text
    assert [record["sites"]["a"]["status"] for record in result.records] == ["skipped", "ok"]
    assert why in result.records[0]["sites"]["a"]["reason"]
    assert result.records[0]["sites"]["c"]["reason"].startswith("RuntimeError in "), "its own failure"
    assert model_of(tmp_path, 0)["w"].eq(weights()["w"]).all(), "the model is unchanged"
    # of the first round nothing was unmasked again; in the second a and b step from the same model
    assert [images for images, _ in again] == [4]
    assert model_of(tmp_path, 1)["w"].flatten().tolist() == pytest.approx([1 + 2 * (1 + 9) / 4] * 6, abs=1e-6)


def test_repeated_round_by_same_sites_has_equal_sum(tmp_path):
    ((_, first),), _ = run_again(tmp_path, cut=True)
    ((_, second),), result = run_again(tmp_path)
    assert first.equal(second)
    assert [entry["status"] for entry in result.records[0]["sites"].values()] == ["ok"] * 3


def test_late_site_is_excluded_from_begun_sum(tmp_path):
    run_again(tmp_path, away="c", cut=True)
    ((images, _),), result = run_again(tmp_path)
    assert images == 4
    assert "this round's sum was started without it, before a restart" in result.records[0]["sites"]["c"]["reason"]
    assert model_of(tmp_path)["w"].flatten().tolist() == pytest.approx([1 + (1 + 9) / 4] * 6, abs=1e-6)


def test_failed_unmasking_fixes_members_of_sum(tmp_path):
    with pytest.raises(Stopped, match="1 updates to add, 2 needed"):
        run_again(tmp_path, fails={"b": Task.UNMASK, "c": Task.UNMASK}, rounds=2)
    _, result = run_again(tmp_path, away="c", rounds=2)
    assert [record["sites"]["b"]["status"] for record in result.records] == ["skipped", "ok"]


def test_second_sum_with_other_members_is_refused(tmp_path):
    run_again(tmp_path, cut=True)
    (tmp_path / "secure_sum.json").unlink()
    expected = "expected the members of the earlier unmasked sum of this update: a, b, c, found c missing"
    with pytest.raises(Stopped, match=f"(?s)0 updates to add.*{expected}|1 updates to add.*{expected}"):
        run_again(tmp_path, away="c")


def test_sums_are_recorded_by_update_and_round(tmp_path):
    path = tmp_path / "sums.jsonl"
    secure_aggregation.record_sum(path, "plan", 0, "u0", ["a", "b"])
    secure_aggregation.record_sum(path, "plan", 0, "u0", ["a", "b"])
    secure_aggregation.record_sum(path, "plan", 1, "u1", ["a", "c"])
    assert len(path.read_text().splitlines()) == 2
    for run, round, update in (("plan", 0, "other noise"), ("another plan", 5, "u0")):
        expected = "of this update: a, b, found c added, b missing; resume when all of them are there"
        with pytest.raises(MessageRefused, match=expected):
            secure_aggregation.record_sum(path, run, round, update, ["a", "c"])
    secure_aggregation.record_sum(path, "another plan", 0, "u2", ["b", "c"])
    with path.open("a") as file:
        file.write('{"run": "plan", "rou')  # power was cut: no shares have left
    secure_aggregation.record_sum(path, "plan", 2, "u3", ["b", "c"])
    assert [line is None for line in json_lines(path)] == [False, False, False, True, False]


def test_update_hash_covers_tensors_and_weight():
    def update(n=2, **tensors):
        return Message(Kind.WEIGHTS, "a", 0, 2, n=n, tensors=tensors)

    one, count = torch.tensor([1.0, 2.0]), torch.tensor(3)
    known = secure_aggregation.update_hash(update(w=one, c=count))
    assert known == secure_aggregation.update_hash(update(c=count.clone(), w=one.clone()))
    others = [update(3, w=one, c=count), update(w=one, c=count + 1), update(w=one[None], c=count)]
    others += [update(w=one.double(), c=count), update(v=one, c=count), update(w=one + 1e-7, c=count)]
    assert len({known, *map(secure_aggregation.update_hash, others)}) == 7


SMALL_ORDER = torch.zeros(3, secure_aggregation.KEYS, dtype=torch.uint8)
SMALL_ORDER[1, [0, secure_aggregation.SECRET]] = 1  # of b: a public key with which no member can agree on a secret


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (torch.eye(3, secure_aggregation.KEYS, dtype=torch.uint8).roll(1, 0), "rows of other members"),
        (SMALL_ORDER, "a key that allows no shared secret"),
    ],
)
def test_fault_95_invalid_keys_exclude_only_sending_site(tmp_path, forged, reason):
    result, *_ = run(tmp_path, clients={site: FixedClient(site, step=1.0) for site in "abc"}, forged=forged)
    sites = result.records[0]["sites"]
    assert reason in sites["b"]["reason"]
    assert [sites[site]["status"] for site in "abc"] == ["ok", "skipped", "ok"]
    assert model_of(tmp_path)["w"].eq(2).all()


@given(
    values=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=2, max_size=6),
    bits=st.integers(8, 40),
    data=st.data(),
)
def test_mean_of_vectors_matches_weighted_mean(values, bits, data):
    counts = [data.draw(st.integers(1, 1000)) for _ in values]
    like = {"b": torch.zeros(2, 1), "a": torch.zeros(1), "c": torch.zeros((), dtype=torch.int64)}
    models = [
        {"b": torch.tensor(row[:2]).reshape(2, 1), "a": torch.tensor(row[2:3]), "c": torch.tensor(int(row[3]))}
        for row in values
    ]
    if bits > 34 and max(abs(value) for row in values for value in row) > 1:
        bits = 34  # 1,000 images x 1,000 x 6 sites leave no more room
    vectors = [
        secure_aggregation.as_vector(m, weight=n, fraction_bits=bits, members=6)
        for m, n in zip(models, counts, strict=True)
    ]
    mean = secure_aggregation.as_mean(sum(vectors[1:], start=vectors[0]), like, weight=sum(counts), fraction_bits=bits)
    assert list(mean) == list(like)
    for name in ("a", "b"):
        plain = sum(n * m[name].double() for m, n in zip(models, counts, strict=True)) / sum(counts)
        assert torch.allclose(mean[name].double(), plain, rtol=2**-23, atol=2.0 ** -(bits + 1))
    exact = sum(n * int(m["c"]) for m, n in zip(models, counts, strict=True)) / sum(counts)
    assert abs(int(mean["c"]) - exact) <= 0.5 + 1e-9


def test_secure_job_is_recorded_and_reported(small_federation, tmp_path):
    privacy = {"least_images": 1, "secure_aggregation": {}}
    results = job(small_federation, tmp_path, privacy=privacy, rounds=1).run()
    assert validate_results(results) == []
    assert results["privacy"]["secure_aggregation"] == {"threshold": None, "fraction_bits": 32}
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("cache/privacy/*.sums.jsonl")]
    assert [(entry["round"], entry["members"]) for entry in kept] == [(0, ["site-1", "site-2"])] * 2
    assert json.loads((tmp_path / "secure_sum.json").read_text())["members"] == ["site-1", "site-2"]
    page = Path(Report(run_folder=tmp_path, overlays=False).write())
    assert "Updates were added under masks" in page.read_text()
    audit = read_audit(tmp_path / "sites" / "site-1" / "audit.jsonl")
    recorded = [(x["task"], x["outcome"], x["kind"]) for x in audit if x["task"] not in ("evaluate", "check")]
    steps = [(step, "sent", "secure") for step in ("keys", "shares", "masked", "unmask")]
    assert recorded[-5:] == [("train", "masked", "weights"), *steps]
    assert json.loads((tmp_path / "run.json").read_text())["config"]["privacy"]["secure_aggregation"] == {}


@given(secret=st.binary(min_size=secure_aggregation.SECRET, max_size=secure_aggregation.SECRET), data=st.data())
def test_threshold_shares_restore_secret(secret, data):
    holders = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=8, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = secure_aggregation.split_secret(secret, holders, threshold)
    assert all(len(share) == secure_aggregation.SHARE for share in shares.values())
    chosen = data.draw(st.permutations(holders))[: data.draw(st.integers(threshold, len(holders)))]
    assert secure_aggregation.join_shares({holder: shares[holder] for holder in chosen}) == secret


def test_too_few_or_changed_shares_are_refused():
    shares = secure_aggregation.split_secret(b"s" * secure_aggregation.SECRET, range(5), 3)
    with pytest.raises(MessageRefused, match="expected shares of one secret, at least the threshold, found shares"):
        secure_aggregation.join_shares({0: shares[0], 1: shares[1]})
    for wrong in (
        {**shares, 2: bytes(secure_aggregation.SHARE - 1) + b"\x01"},
        {0: (2 ** (8 * secure_aggregation.SECRET)).to_bytes(secure_aggregation.SHARE, "big")},
    ):
        with pytest.raises(MessageRefused, match="shares that do not match"):
            secure_aggregation.join_shares(wrong)
    again = secure_aggregation.split_secret(b"s" * secure_aggregation.SECRET, range(5), 3)
    assert all(shares[holder] != again[holder] for holder in range(5))


def test_stream_matches_chacha20_test_vector():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter of zeros."""
    start = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert secure_aggregation.key_stream(bytes(secure_aggregation.SECRET), 4).tobytes().hex() == start


def test_vector_encoding_rounds_weights_and_limits_range():
    tensors = {"b": torch.tensor([[0.5, -0.25], [3.0, 0.3]]), "a": torch.tensor(7)}
    assert secure_aggregation.as_vector(tensors, weight=3, fraction_bits=2, members=4).tolist() == [21, 6, -3, 36, 3]
    expected = r"at most 2.1\S*e\+08, so that the sum fits in 64 bits, found 1e\+09, weighted by 1 images; lower "
    with pytest.raises(MessageRefused, match=expected):
        secure_aggregation.as_vector({"a": torch.tensor([-1e9, 1.0])}, weight=1, fraction_bits=32, members=5)


def seal_shares(count, threshold=2, *, silent=()):
    """Members, their keys, and the shares that each sealed for the others, but for those that are silent."""
    members = {number: secure_aggregation.Member(number, threshold) for number in range(count)}
    keys = {number: member.keys() for number, member in members.items()}
    return members, keys, {number: member.shares(keys) for number, member in members.items() if number not in silent}


def shares_for(number, sealed):
    return {sender: rows[number] for sender, rows in sealed.items() if sender != number}


def sum_under_masks(values, threshold, *, silent=(), late=()):
    """The masked vectors and their sum; ``silent`` members never seal shares and ``late`` ones never add."""
    members, keys, sealed = seal_shares(len(values), threshold, silent=silent)
    vectors = {number: members[number].masked(values[number], shares_for(number, sealed)) for number in sealed}
    inside = sorted(sealed.keys() - set(late))
    shares = {number: members[number].unmask(inside) for number in inside}
    total = sum((vectors[number] for number in inside), start=np.zeros_like(values[0]))
    return vectors, secure_aggregation.unmask_sum(total, survivors=inside, shares=shares, keys=keys)


@given(st.lists(st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=3, max_size=6), st.data())
@settings(max_examples=20)
def test_masked_sum_equals_plain_sum_with_missing_members(values, data):
    values = [np.array(row) for row in values]
    threshold = len(values) // 2 + 1
    missing = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=len(values) - threshold, unique=True))
    cut = data.draw(st.integers(0, len(missing)))
    _, found = sum_under_masks(values, threshold, silent=missing[:cut], late=missing[cut:])
    plain = sum((row for number, row in enumerate(values) if number not in missing), start=np.zeros(3, dtype=np.int64))
    assert found.tolist() == plain.tolist()


def test_masked_vector_is_uniform_and_unique():
    """Of zeros: each bit is one half of the time 1, and two rounds have nothing in common.

    65,536 bits of a place stray from one half by less than six standard deviations (0.5 / 256 each).
    """
    zeros = [np.zeros(65536, dtype=np.int64)] * 3
    (one, _), (again, _) = sum_under_masks(zeros, 2), sum_under_masks(zeros, 2)
    bits = np.unpackbits(one[0].view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 256
    assert not (one[0] == again[0]).any()
    assert np.abs(np.corrcoef(one[0], one[1])[0, 1]) < 6 / 256


def test_self_mask_hides_late_vector():
    """The server can remove the masks of pairs from a late vector, but not its own mask."""
    members, keys, sealed = seal_shares(3)
    values = np.zeros(4096, dtype=np.int64)
    _, _, late = (members[number].masked(values, shares_for(number, sealed)) for number in range(3))
    shares = {number: members[number].unmask([0, 1])[2] for number in (0, 1)}
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    masking = X25519PrivateKey.from_private_bytes(secure_aggregation.join_shares(shares))
    for other in (0, 1):
        late = late - secure_aggregation._pair_mask(masking, 2, keys[other], other, 4096)
    assert not (late == 0).any(), "its own seed was not given away"
    assert np.array_equal(late, secure_aggregation.key_stream(members[2]._seed, 4096))


def test_protocol_violations_are_refused():
    members, keys, sealed = seal_shares(3)
    zeros, few = np.zeros(2, dtype=np.int64), "expected at least the threshold of 2, which hides each update, found 1"
    assert {len(key) for key in keys.values()} == {secure_aggregation.KEYS}
    assert {len(row) for rows in sealed.values() for row in rows.values()} == {secure_aggregation.SEALED}
    with pytest.raises(MessageRefused, match=few):
        members[0].shares({0: keys[0]})
    for wrong in ({**keys, 0: keys[1]}, {**keys, 2: keys[1]}, {1: keys[1], 2: keys[2]}):
        with pytest.raises(MessageRefused, match="a wrong list of keys"):
            members[0].shares(wrong)
    for wrong in ({0: sealed[1][0], 1: sealed[1][0]}, {1: sealed[1][0], 7: sealed[2][0]}):
        with pytest.raises(MessageRefused, match="shares of another sender"):
            members[0].masked(zeros, wrong)
    changed = sealed[0][1][:-1] + bytes([sealed[0][1][-1] ^ 1])
    for receiver, mail in ((1, {0: changed}), (2, {1: sealed[2][1]})):  # the latter its own, sent back
        with pytest.raises(MessageRefused, match="shares that changed in transit"):
            members[receiver].masked(zeros, mail)
    members[0].masked(zeros, shares_for(0, sealed))
    with pytest.raises(MessageRefused, match=few):
        members[0].unmask([0])
    with pytest.raises(MessageRefused, match="members without shares at this site"):
        members[1].unmask([1, 7])
    members[0].unmask([0, 1])
    with pytest.raises(MessageRefused, match="members without shares at this site"):
        members[0].unmask([0, 2])  # the other kind of share of 1 and of 2


def test_mismatched_masking_key_is_refused():
    members, keys, _ = seal_shares(3)
    other = secure_aggregation.split_secret(b"o" * secure_aggregation.SECRET, range(3), 2)
    seeds = {number: secure_aggregation.split_secret(members[number]._seed, range(3), 2) for number in range(2)}
    shares = {holder: {0: seeds[0][holder], 1: seeds[1][holder], 2: other[holder]} for holder in range(2)}
    with pytest.raises(MessageRefused, match="shares of another key"):
        secure_aggregation.unmask_sum(np.zeros(2, dtype=np.int64), survivors=[0, 1], shares=shares, keys=keys)


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
def test_fault_95_unusable_or_foreign_keys_are_refused(point):
    own, other = secure_aggregation.Member(0, 2).keys(), secure_aggregation.Member(1, 2).keys()
    secure_aggregation.require_keys(own, [other])
    for keys in (own[: secure_aggregation.SECRET] + point, point + own[secure_aggregation.SECRET :]):
        expected = "expected two valid public keys of X25519, found a key that allows no shared secret"
        with pytest.raises(MessageRefused, match=expected):
            secure_aggregation.require_keys(keys, [])
    with pytest.raises(MessageRefused, match="expected the member's own keys, found the keys of another member"):
        secure_aggregation.require_keys(own, [other, own])
