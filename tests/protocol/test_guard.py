"""Accepted senders and messages, and limits of one site: step length, share and image count."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.protocol import Exchange, Kind, Message, MessageRefused, Server, Strategy, UpdateGuard, to_bytes
from samfed_monai.protocol.guard import ImageCounts, Inbox, norm, shortened
from samfed_monai.protocol.transport import received
from tests.federation.toys import weights


def message(**changes) -> Message:
    fields = {"kind": Kind.WEIGHTS, "site": "a", "round": 2, "rounds": 5, "n": 7, "tensors": weights()}
    return Message(**{**fields, **changes})


@pytest.mark.parametrize(
    ("sender", "changes", "problem"),
    [
        ("a", {"round": 1}, "message -> round: expected round 2, found round 1"),  # fault 44
        ("a", {"round": 3}, "message -> round: expected round 2, found round 3"),  # fault 45
        ("z", {"site": "z"}, "message: expected a site of this federation, found an unknown sender"),  # fault 46
        ("b", {}, "message -> site: expected the sender's own name, found another site's name"),
        ("a", {"kind": Kind.PROTOTYPES}, "message: expected weights, which this round exchanges, found prototypes"),
    ],
)
def test_faults_43_to_46_unrequested_messages_are_refused(sender, changes, problem):
    inbox = Inbox(round=2, sites=["a", "b"], like=lambda site: weights(), kind=Kind.WEIGHTS)
    with pytest.raises(MessageRefused) as refused:
        inbox.check(sender, message(**changes))
    assert [str(each) for each in refused.value.problems] == [problem]
    inbox.check("a", message())
    with pytest.raises(MessageRefused, match="expected one answer per site and round, found a second answer"):
        inbox.check("a", message())
    with pytest.raises(MessageRefused, match="expected numbers only"):
        Inbox(round=2, sites=["a"], like=None).check("a", message())


def test_answers_are_checked_against_request_of_site():
    inbox = Inbox(round=2, sites=["a", "b"], like={"a": weights(), "b": {"x": torch.zeros(5)}}.get)
    assert [inbox.max_bytes(site) for site in ("b", "other")] == [2 * 5 * 4 + 1024**2, 1024**2]
    inbox.check("a", message())
    inbox.check("b", message(site="b", tensors={"x": torch.ones(5)}))


def test_fault_79_inflation_is_limited_to_requested_size():
    requested = {"masks": torch.zeros(4, 1, 16, 16, dtype=torch.uint8)}
    inbox = Inbox(round=0, sites=["a"], like=lambda site: requested, kind=Kind.SOFT_MASKS)
    big = {"masks": torch.zeros(3_000_000, dtype=torch.uint8)}  # a few kilobytes once deflated
    bomb = to_bytes(Message(Kind.SOFT_MASKS, "a", 0, 1, n=1, tensors=big))
    assert len(bomb) < inbox.max_bytes("a") == 2 * 1024 + 1024**2
    refused = received("a", bomb, inbox.check, max_bytes=inbox.max_bytes("a"))
    assert refused.reason.endswith("expected at most 1050624 bytes, found 3000000 bytes once inflated")
    small = to_bytes(Message(Kind.SOFT_MASKS, "a", 0, 1, n=1, tensors=requested))
    taken = received("a", small, inbox.check, max_bytes=inbox.max_bytes("a"))
    assert (taken.n, taken.tensors) == (1, {}), "tensors are released after they are passed on"
    assert received("a", small, None).tensors.keys() == {"masks"}


class Foreign(Strategy):
    """Another package's strategy, without a guard."""

    def __init__(self, **exchange):
        self.exchange, self.taken = Exchange(**exchange), {}

    def configure(self, round):
        return {site: self.message(site, round, Kind.WEIGHTS, self.global_weights) for site in self.server.sites}

    def accept(self, round, site, update):
        self.taken[site] = update.tensors


def taken(tensors, guard, **exchange):
    """The tensors that a foreign strategy with weights (3, 4) receives from a site."""
    strategy = Foreign(**exchange)
    strategy.attach(Server(["a"], 1, weights={"w": torch.tensor([3.0, 4.0])}, guard=guard))
    strategy.take(0, "a", Message(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=tensors))
    return strategy.taken["a"]["w"].tolist()


def test_fault_39_long_step_is_limited_before_strategy(caplog):
    far, guard = {"w": torch.tensor([3.0, 104.0])}, UpdateGuard(limit=2.0)  # a step of 100 where 2 * 5 are allowed
    assert taken(far, guard) == pytest.approx([3.0, 14.0])
    assert "round 1: the update of a was scaled down to 0.1 of its size" in caplog.text
    with pytest.raises(MessageRefused, match="expected at most 10, found a step of norm 100"):
        taken(far, UpdateGuard(limit=2.0, action="skip"))
    assert taken(far, None) == taken(far, guard, alike=False) == [3.0, 104.0], "no guard, or a network of its own"
    assert taken(far, guard, answer=Kind.SOFT_MASKS) == [3.0, 104.0], "no step from the server's weights"


def test_guard_is_read_from_json_and_problems_reported():
    guard, default = UpdateGuard.from_json({"limit": 2.0, "largest_share": 0.5}), UpdateGuard()
    assert (guard.limit, guard.action, guard.largest_share) == (2.0, "clip", 0.5)
    assert (default.limit, default.largest_share) == (10.0, None)
    problems = r"(?s)job#update_guard -> max_norm: .*an unknown key.*UpdateGuard#limit: expected a .*, found -1.*'cut'"
    with pytest.raises(Refused, match=problems):
        UpdateGuard.from_json({"max_norm": 5, "limit": -1, "action": "cut"})


def test_clipping_keeps_integers_unknown_names_and_original():
    reference = {"w": torch.tensor([3.0, 4.0]), "n": torch.tensor(1)}  # norm 5: a step of 10 is allowed
    far = {"w": torch.tensor([3.0, 24.0]), "n": torch.tensor(9), "x": torch.tensor([1e9])}  # a step of 20
    update = Message(Kind.WEIGHTS, "a", 0, 1, n=1, tensors=far)
    clipped = UpdateGuard(limit=2.0).limited(update, reference).tensors
    assert (clipped["w"].tolist(), clipped["n"].item(), clipped["x"].item()) == ([3.0, 14.0], 9, 1e9)
    assert update.tensors["w"].tolist() == [3.0, 24.0], "the sent update is unchanged"
    assert UpdateGuard(limit=4.0).limited(update, reference) is update


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
        (0.5, {"a": 4, "b": 4, "c": 0}, {"a": 4, "b": 4, "c": 0}),
        (0.5, {"a": 9, "b": 4, "c": 0}, {"a": 4, "b": 4, "c": 0}),
        (1 / 3, {"a": 5, "b": 5, "c": 1, "d": 0}, {"a": 1, "b": 1, "c": 1, "d": 0}),  # three thirds leave no room
        (0.4, {"a": 90, "b": 60, "c": 10, "d": 6}, {"a": 32, "b": 32, "c": 10, "d": 6}),
        (0.25, {"a": 9, "b": 4}, {"a": 1, "b": 1}),
        (0.25, {"a": 9, "b": 4, "c": 2, "d": 1}, {"a": 1, "b": 1, "c": 1, "d": 1}),
    ],
)
def test_counted_images_are_limited_to_largest_share(share, images, counted):
    assert UpdateGuard(largest_share=share).counted(images) == counted


def update_of(n: int, site: str = "a") -> Message:
    return Message(Kind.WEIGHTS, site, 0, 1, n=n)


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [
        ([1.0], [8.0], 1.0),
        ([1.0], [11.0], 1.0),
        ([1.0], [-10.5], 10 / 11.5),  # the step counts, and not the length of the update
        ([1.0, 0.0], [3e30, 4e30], 2e-30),  # their squares leave single precision
        ([0.0], [1.0], 1e-11),  # from zero hardly a step may be taken
    ],
)
def test_default_step_limit_is_ten_times_norm(old, new, share) -> None:
    old, new = {"w": torch.tensor(old)}, {"w": torch.tensor(new)}
    assert UpdateGuard().share(new, old) == pytest.approx(share, rel=1e-6, abs=0)
    if share == 1e-11:
        with pytest.raises(MessageRefused, match="message -> tensors: expected at most 1e-11, found a step of norm 1"):
            UpdateGuard(action="skip").share(new, old)


def test_shortened_step_keeps_dtype_and_norm_is_finite() -> None:
    old, new = torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0])
    half = shortened(old, new, 0.5)
    assert (half.item(), half.dtype) == (2.0, torch.float32)
    assert shortened(old, new, 1.0) is new
    assert shortened(torch.tensor(1), count := torch.tensor(3), 0.5) is count
    assert norm({"w": torch.full((4,), 200.0, dtype=torch.float16), "n": torch.tensor(7)}) == 400  # 4 * 200**2 > 65504


def test_fault_77_changed_image_count_is_refused() -> None:
    counts = ImageCounts({"a": 5, "b": 0})
    assert counts.counted("a", update_of(5)).n == 5
    with pytest.raises(MessageRefused, match="n: expected 5, as this site reported before, found 9; start a new"):
        counts.counted("a", update_of(9))
    assert counts.counted("b", update_of(3, "b")).n == 3, "it reported none before round 0: the first count is accepted"
    with pytest.raises(MessageRefused, match="expected 3, as this site reported before, found 4"):
        counts.counted("b", update_of(4, "b"))
    assert counts.counted("c", update_of(0, "c")).n == 0


def test_fault_77_capped_counts_are_used_and_new_counts_refused() -> None:
    counts = ImageCounts({"a": 90, "b": 10}, UpdateGuard(largest_share=0.5))
    assert [counts.counted(site, update_of(n, site)).n for site, n in (("a", 90), ("b", 10))] == [10, 10]
    with pytest.raises(MessageRefused, match="expected none, as this site reported before, found 7"):
        counts.counted("c", update_of(7, "c"))
    assert counts.counted("c", update_of(0, "c")).n == 0
    update = update_of(90)
    assert ImageCounts({"a": 90}, UpdateGuard()).counted("a", update) is update, "nothing is capped"


def test_counts_are_remembered_from_stored_rounds() -> None:
    counts = ImageCounts({"a": 5, "b": 6})
    entries = {"a": ("ok", 7), "b": ("skipped", 8), "c": ("skipped", None), "d": ("ok", 2)}
    counts.remember([{"sites": {site: {"status": status, "n": n} for site, (status, n) in entries.items()}}])
    assert counts.reported == {"a": 7, "b": 6, "d": 2}


def test_capped_and_dominant_sites_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ImageCounts({"a": 90, "b": 10}, UpdateGuard(largest_share=0.5)).log_shares()
        ImageCounts({"a": 91, "b": 9}).log_shares()
        ImageCounts({"a": 90, "b": 10}).log_shares()
    assert [record.message for record in caplog.records] == [
        "a reports 90 training images; means weighted by images count 10 of them",
        "a reports 91 training images, 91 % of all; if this is wrong, limit its weight with job#update_guard#"
        "largest_share",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"limit": 0}, "UpdateGuard#limit: expected a number > 0, found 0"),
        ({"limit": math.nan}, "UpdateGuard#limit: expected a number > 0, found nan"),
        ({"limit": "2"}, "UpdateGuard#limit: expected a number > 0, found '2'"),
        ({"action": "drop"}, "UpdateGuard#action: expected one of ['clip', 'skip'], found 'drop'"),
        ({"largest_share": 0}, "UpdateGuard#largest_share: expected a number in (0, 1], or null, found 0"),
        ({"largest_share": 1.01}, "UpdateGuard#largest_share: expected a number in (0, 1], or null, found 1.01"),
        ({"largest_share": True}, "UpdateGuard#largest_share: expected a number in (0, 1], or null, found True"),
    ],
)
def test_invalid_options_are_refused(options, problem):
    with pytest.raises(Refused) as caught:
        UpdateGuard(**options)
    assert [str(each) for each in caught.value.problems] == [problem]


@pytest.mark.parametrize(
    ("share", "weights", "capped"),
    [
        (0.5, [0.8, 0.1, 0.1], [0.5, 0.25, 0.25]),
        (0.5, [0.6, 0.3, 0.1], [0.5, 0.375, 0.125]),
        (0.5, [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]),
        (0.4, [0.6, 0.35, 0.05], [0.4, 0.4, 0.2]),  # b would have 0.525 of a's excess: it is brought down, too
        (0.4, [1.0, 0.0, 0.0], [0.4, 0.3, 0.3]),
        (0.4, [0.9, 0.1], [0.5, 0.5]),
        (0.1, [0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_excess_weight_is_distributed_in_proportion(share, weights, capped) -> None:
    found = UpdateGuard(largest_share=share).capped(dict(zip("abc", weights, strict=False)))
    assert list(found.values()) == pytest.approx(capped, abs=1e-12)


@pytest.mark.parametrize("share", [None, 0.7, 1])
def test_weights_below_cap_are_unchanged(share: float | None) -> None:
    weights = {"a": 0.7, "b": 0.1, "c": 0.2}  # their sum is not 1 to the last bit
    assert UpdateGuard(largest_share=share).capped(weights) == weights


@settings(max_examples=200)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(any), st.floats(0.01, 1))
def test_capped_weights_sum_to_one_and_keep_order(weights, share) -> None:
    given_ = {f"s{at}": weight / sum(weights) for at, weight in enumerate(weights)}
    capped = UpdateGuard(largest_share=share).capped(given_)
    assert capped.keys() == given_.keys()
    assert min(capped.values()) >= 0
    assert sum(capped.values()) == pytest.approx(1, abs=1e-9)
    if share * len(weights) >= 1:
        assert max(capped.values()) <= share + 1e-9
    else:
        assert list(capped.values()) == pytest.approx([1 / len(weights)] * len(weights))
    ranked = sorted(given_, key=given_.__getitem__)
    assert all(capped[low] <= capped[high] + 1e-9 for low, high in pairwise(ranked))
