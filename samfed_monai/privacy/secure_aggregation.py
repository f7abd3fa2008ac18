"""Secure aggregation in rounds: sites answer with masked vectors, and the server learns their sum and no more.

Sites train as ever, and keep what their release filter lets go. Then come four short exchanges over any transport:
keys, sealed shares, masked vectors, and the shares that unmask the sum (:mod:`samfed_monai.privacy.secure_sum`). The
strategy is given the weighted mean as one answer.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samfed_monai.core import tensor_file
from samfed_monai.core.errors import Problem
from samfed_monai.core.io import append_line, locked, read_json, write_json
from samfed_monai.privacy.audit import lines
from samfed_monai.privacy.secure_sum import KEYS, SEALED, SHARE, Member, quantised, require_keys, unmasked
from samfed_monai.protocol.message import Kind, Message, MessageRefused
from samfed_monai.protocol.transport import Failure, Inbox, Task, Transport

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from samfed_monai.privacy.rules import SecureAggregation
    from samfed_monai.protocol.strategy import Strategy

logger = logging.getLogger(__name__)

#: What a site is asked after its training, in this order.
STEPS = (Task.KEYS, Task.SHARES, Task.MASKED, Task.UNMASK)
_MEMBERS, _MEAN = "members", "mean"


def as_vector(tensors: Mapping[str, Tensor], *, weight: int, fraction_bits: int, members: int) -> NDArray[np.int64]:
    """All entries of all tensors, in the order of names, quantised and times ``weight``; integers have no fraction.

    Raises:
        MessageRefused: numbers for which 64 bits are too few (:func:`quantised`).
    """
    parts = []
    for name in sorted(tensors):
        values, bits = tensors[name].detach().cpu(), fraction_bits if tensors[name].is_floating_point() else 0
        parts.append(quantised(values.double().numpy().ravel(), weight=weight, fraction_bits=bits, members=members))
    return np.concatenate(parts)


def as_mean(
    total: NDArray[np.int64], like: Mapping[str, Tensor], *, weight: int, fraction_bits: int
) -> dict[str, Tensor]:
    """The weighted mean out of the sum of :func:`as_vector`: with ``like``'s names, shapes and types.

    Args:
        total: (P,) the sum.
        like: the model.
        weight: the sum of weights.
        fraction_bits: as they were added with. Whole numbers are rounded to the nearest.
    """
    mean, start = {}, 0
    for name in sorted(like):
        tensor = like[name]
        values = torch.from_numpy(total[start : start + tensor.numel()].astype(np.float64)) / weight
        values = values * 2.0**-fraction_bits if tensor.is_floating_point() else values.round()
        mean[name] = values.reshape(tensor.shape).to(tensor.dtype)
        start += tensor.numel()
    return {name: mean[name] for name in like}


class SumsOfUpdates:
    """What sums a site has helped to unmask: none a second time with other members.

    Two sums that have the same update of a site in them, and another's in one of the two alone, differ by that one. A
    round that is done again after a crash trains to the same updates, so the members of its sum must stay the same. A
    line is written before the shares leave; a majority of all sites has to give shares, so the majority of a second
    sum has a site in it that gave them for the first.

    Args:
        path: file of lines; ``None`` remembers for as long as the process lives. Deleting it forgets what was added.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._entries: list[dict[str, Any]] = []

    def enter(self, run: str, round: int, update: str, members: Sequence[str]) -> None:
        """Enters a sum before this site's shares for it leave.

        Args:
            run: the plan's ``updates_hash``: a run of such a plan trains to the same updates, whatever the server calls
                it, and however long it waits.
            round: from 0.
            update: :func:`update_hash` of what this site added.
            members: names of the sites whose vectors are in the sum.

        Raises:
            MessageRefused: a sum of this update, or of this round of this plan, had other members.
            OSError: it could not be written.
        """
        if self.path is None:
            self._enter(run, round, update, sorted(members))
            return
        with locked(self.path):
            known = lines(self.path) if self.path.is_file() else []
            self._entries = [entry for entry in known if entry is not None]  # what was cut off was never answered for
            if (entry := self._enter(run, round, update, sorted(members))) is not None:
                append_line(self.path, json.dumps(entry, ensure_ascii=False))

    def _enter(self, run: str, round: int, update: str, members: list[str]) -> dict[str, Any] | None:
        key = (run, round)
        same = [each for each in self._entries if each["update"] == update or (each["run"], each["round"]) == key]
        for before in (each["members"] for each in same):
            if before != members:
                differ = [f"{name} more" for name in members if name not in before]
                differ += [f"{name} missing" for name in before if name not in members]
                expected = f"the members of the sum of this update that was unmasked before: {', '.join(before)}"
                hint = "go on when they are all there, or begin a run with another seed"
                raise MessageRefused([Problem("secure aggregation", ", ".join(differ), expected, hint)])
        if same:
            return None
        entry = {"run": run, "round": round, "update": update, "members": members}
        self._entries.append(entry)
        return entry


def update_hash(answer: Message) -> str:
    """SHA-256 of an update: names, types, shapes and bits of its tensors, and the number of images that it weighs."""
    digest = hashlib.sha256(f"{answer.n} ".encode())
    for piece in tensor_file.pieces(answer.tensors):
        digest.update(piece)
    return digest.hexdigest()


class SecureSite:
    """A site's part: keeps the answer of its training until it is asked for under masks.

    Args:
        site: its name.
        sites: names of all that train, in an order that both ends have.
        settings: threshold and precision.
        sums: what this site has helped to unmask so far; ``None`` begins anew.
        run: identity of what is run, the plan's hash.
    """

    def __init__(
        self,
        site: str,
        sites: Iterable[str],
        settings: SecureAggregation,
        sums: SumsOfUpdates | None = None,
        run: str = "",
    ) -> None:
        self.sites = sorted(sites)
        self.number, self.settings = self.sites.index(site), settings
        self.sums, self.run = sums or SumsOfUpdates(), run
        self._answer: Message | None = None
        self._member: Member | None = None

    def hold(self, answer: Message) -> Message:
        """What leaves of an answer to a training at once: its numbers."""
        if not answer.tensors:
            return answer
        self._answer, self._member = answer, None
        return replace(answer, kind=Kind.METRICS, tensors={}, extra={})

    def answer(self, task: Task, message: Message) -> Message:
        """Does one of :data:`STEPS`.

        Raises:
            MessageRefused: out of its turn, of another round, or what :class:`Member` refuses.
        """
        held, sites = self._answer, len(self.sites)
        if held is None or held.round != message.round or (self._member is None) != (task == Task.KEYS):
            found, expected = f"{Task(task).value} out of its turn", "the steps of one round, after its training"
            raise MessageRefused([Problem("secure aggregation", found=found, expected=expected)])
        member = self._member = self._member or Member(self.number, self.settings.threshold_of(sites))
        match task:
            case Task.KEYS:
                tensors = _packed("keys", {self.number: member.keys()})
            case Task.SHARES:
                tensors = _packed("shares", member.shares(_rows(message, "keys", KEYS, sites)))
            case Task.MASKED:
                sealed = _rows(message, "shares", SEALED, sites)
                bits = self.settings.fraction_bits
                vector = as_vector(held.tensors, weight=held.n, fraction_bits=bits, members=sites)
                tensors = {"masked": torch.from_numpy(member.masked(vector, sealed))}
            case _:
                survivors = _rows(message, "survivors", 0, sites)
                self._answer, self._member = None, None
                tensors = _packed("shares", member.unmask(survivors))
                names = [self.sites[number] for number in survivors]
                self.sums.enter(self.run, held.round, update_hash(held), names)
        return replace(held, kind=Kind.SECURE, tensors=tensors, metrics={}, extra={})


class BelowThreshold(Exception):
    """Too few sites are left for their sum to be unmasked.

    Args:
        left: how many.
        needed: the threshold.
        failures: site to why it is not among them.
    """

    def __init__(self, left: int, needed: int, failures: Mapping[str, str]) -> None:
        super().__init__(f"{left} updates could be added, {needed} needed")
        self.left, self.needed, self.failures = left, needed, dict(failures)


class OtherMembers(Exception):
    """A round that is done again cannot have the sum that was begun before: a member is missing.

    Args:
        begun: members of that sum.
        missing: those who are not there now.
    """

    def __init__(self, begun: Sequence[str], missing: Sequence[str]) -> None:
        super().__init__(f"its sum was begun with {', '.join(begun)}, and {', '.join(missing)} did not come back")


class SecureServer:
    """The server's part: it has the sites' updates added, for a strategy that needs their mean alone.

    It learns the sum of the sites that gave their masked vector, each weighed by its own number of images, and those
    numbers. The update guard sees the mean and no step by itself. It trusts sites: a wrong vector makes the mean wrong.

    Before it asks for shares it writes down whose sum they are for. A round that is done again, after a crash or below
    a threshold, has the same members or no sum at all (:class:`SumsOfUpdates`, by which sites hold it to that).

    Args:
        settings: threshold and precision.
        strategy: what takes the mean, attached to its run.
        transport: carries messages.
        timeout: seconds that each of the four exchanges may take; ``None`` waits.
        begun: file for whose sum the last one was; ``None`` remembers for as long as the process lives.
    """

    def __init__(
        self,
        settings: SecureAggregation,
        strategy: Strategy,
        transport: Transport,
        *,
        timeout: float | None = None,
        begun: str | Path | None = None,
    ) -> None:
        self.settings, self.strategy, self.transport, self.timeout = settings, strategy, transport, timeout
        self._file = None if begun is None else Path(begun)
        self._begun: dict[str, Any] = read_json(self._file) if self._file is not None and self._file.is_file() else {}
        #: Site to why its update is not in the last sum, although it trained.
        self.dropped: dict[str, Failure] = {}
        self._images: dict[str, int] = {}

    @property
    def threshold(self) -> int:
        """Sites without which nothing is unmasked."""
        return self.settings.threshold_of(len(self.strategy.server.sites))

    def take(self, round: int, site: str, update: Message) -> None:
        """Notes that a site has trained.

        Raises:
            MessageRefused: it says no images to weigh it by.
        """
        if update.n < 1:
            raise MessageRefused([Problem("message -> n", found=str(update.n), expected="at least 1")])
        self._images[site] = update.n

    def finish(self, round: int) -> None:
        """Has the sites add their updates, and gives the strategy their mean.

        Raises:
            BelowThreshold: too few sites went through all the steps.
            OtherMembers: this round's sum was begun before with a site that is not there now; the model is as it was.
            MessageRefused: what was unmasked is no model; the steps do not show whose fault it is.
        """
        images, self._images, self.dropped = self._images, {}, {}
        begun = self._members(round)
        if begun is not None:
            left_out = "it was not in this round's sum when that was begun, before a restart"
            self.dropped = {site: Failure(site, left_out) for site in images.keys() - set(begun)}
            images = {site: n for site, n in images.items() if site in begun}
            self._require_all(begun, images)
        total, survivors = self._sum(round, images)
        weight = sum(images[site] for site in survivors)
        mean = as_mean(total, self._like, weight=weight, fraction_bits=self.settings.fraction_bits)
        server = self.strategy.server
        update = Message(Kind.WEIGHTS, _MEAN, round, server.rounds, server.seed, n=weight, tensors=mean)
        update.check(up=False, like=self._like)
        self.strategy.take(round, _MEAN, update)
        self.strategy.finish(round)

    def _members(self, round: int) -> list[str] | None:
        """Whose sum of this round was begun before; ``None`` where none was."""
        return list(self._begun["members"]) if self._begun.get("round") == round else None

    def _begin(self, round: int, survivors: Sequence[str]) -> None:
        """Writes down whose sum of this round is unmasked now.

        Raises:
            OtherMembers: another one was begun before.
        """
        begun = self._members(round)
        if begun is not None:
            self._require_all(begun, survivors)
            return
        self._begun = {"round": round, "members": sorted(survivors)}
        if self._file is not None:
            write_json(self._file, self._begun)

    @staticmethod
    def _require_all(begun: Sequence[str], there: Iterable[str]) -> None:
        if missing := sorted(set(begun) - set(there)):
            raise OtherMembers(begun, missing)

    @property
    def _like(self) -> Mapping[str, Tensor]:
        return self.strategy.global_weights

    def _sum(self, round: int, images: Mapping[str, int]) -> tuple[NDArray[np.int64], list[str]]:
        sites = sorted(self.strategy.server.sites)
        number = {site: index for index, site in enumerate(sites)}
        keys: dict[int, bytes] = {}
        sealed: dict[int, dict[int, bytes]] = {}
        shares: dict[int, dict[int, bytes]] = {}
        size, survivors = sum(tensor.numel() for tensor in self._like.values()), list[str]()
        total = np.zeros(size, dtype=np.int64)

        def take_keys(site: str, reply: Message) -> None:
            own = _only(_rows(reply, "keys", KEYS, len(sites)), {number[site]})[number[site]]
            require_keys(own, keys.values())
            keys[number[site]] = own

        def take_shares(site: str, reply: Message) -> None:
            rows = _rows(reply, "shares", SEALED, len(sites))
            sealed[number[site]] = _only(rows, keys.keys() - {number[site]})

        def take_masked(site: str, reply: Message) -> None:
            np.add(total, reply.tensors["masked"].numpy(), out=total)
            survivors.append(site)

        def take_unmasking(site: str, reply: Message) -> None:
            shares[number[site]] = _only(_rows(reply, "shares", SHARE, len(sites)), sealed.keys())

        vector = {"masked": torch.empty(size, dtype=torch.int64, device="meta")}
        self._ask(round, Task.KEYS, {site: {} for site in images}, take_keys, like=_table("keys", 1, KEYS))
        everybody = _packed("keys", keys)
        asked = {sites[index]: everybody for index in keys}
        self._ask(round, Task.SHARES, asked, take_shares, like=_table("shares", len(keys) - 1, SEALED))
        mailed = {
            sites[index]: _packed("shares", {sender: rows[index] for sender, rows in sealed.items() if sender != index})
            for index in sealed
        }
        self._ask(round, Task.MASKED, mailed, take_masked, like=vector)
        self._begin(round, survivors)
        inside = [number[site] for site in survivors]
        request = _packed("survivors", dict.fromkeys(inside, b""))
        self._ask(
            round,
            Task.UNMASK,
            dict.fromkeys(survivors, request),
            take_unmasking,
            like=_table("shares", len(sealed), SHARE),
        )
        left = unmasked(total, survivors=inside, dropped=sealed.keys() - set(inside), shares=shares, keys=keys)
        return left, survivors

    def _ask(
        self,
        round: int,
        task: Task,
        tensors: Mapping[str, Mapping[str, Tensor]],
        take: Callable[[str, Message], None],
        *,
        like: Mapping[str, Tensor],
    ) -> None:
        """One exchange; whoever does not answer it in order has dropped out of the round, but for the last one.

        Raises:
            BelowThreshold: too few answered.
        """
        server, left = self.strategy.server, set[str]()
        messages = {
            site: Message(Kind.SECURE, site, round, server.rounds, server.seed, tensors=dict(content))
            for site, content in tensors.items()
        }
        inbox = Inbox(round=round, sites=messages, like=lambda _: like, kind=Kind.SECURE)

        def on_reply(site: str, reply: Message) -> None:
            inbox.check(site, reply)
            take(site, reply)
            left.add(site)

        if len(messages) >= self.threshold:
            options: dict[str, Any] = {"quorum": self.threshold, "timeout": self.timeout, "max_bytes": inbox.max_bytes}
            replies = self.transport.send_and_receive(task, messages, on_reply=on_reply, **options)
            failures = {site: reply for site, reply in replies.items() if isinstance(reply, Failure)}
            self.dropped |= failures if task != Task.UNMASK else {}
        else:
            left, failures = set(messages), {}
        if len(left) < self.threshold:
            reasons = {site: failure.reason for site, failure in {**self.dropped, **failures}.items()}
            raise BelowThreshold(len(left), self.threshold, reasons)


def _table(name: str, rows: int, width: int) -> dict[str, Tensor]:
    return {
        _MEMBERS: torch.empty(rows, dtype=torch.int64, device="meta"),
        name: torch.empty(rows, width, dtype=torch.uint8, device="meta"),
    }


def _packed(name: str, rows: Mapping[int, bytes]) -> dict[str, Tensor]:
    """Bytes by member as two tensors: the members' numbers, and a row for each."""
    members = sorted(rows)
    content = b"".join(rows[member] for member in members)
    table = torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.uint8).reshape(len(members), -1))
    return {_MEMBERS: torch.tensor(members, dtype=torch.int64), name: table}


def _rows(message: Message, name: str, width: int, members: int) -> dict[int, bytes]:
    """What :func:`_packed` made, checked.

    Raises:
        MessageRefused: other names, shapes or types, or numbers that are no members'.
    """
    numbers, table = message.tensors.get(_MEMBERS), message.tensors.get(name)
    sound = (
        numbers is not None
        and table is not None
        and numbers.dtype == torch.int64
        and table.dtype == torch.uint8
        and numbers.dim() == 1
        and table.shape == (len(numbers), width)
    )
    if numbers is None or table is None or not sound:
        found = "another table"
    elif len(set(numbers.tolist())) < len(numbers) or not all(0 <= number < members for number in numbers.tolist()):
        found = "numbers that are no members'"
    else:
        return {number: row.numpy().tobytes() for number, row in zip(numbers.tolist(), table, strict=True)}
    expected = f"{name} of members, {width} bytes each"
    raise MessageRefused([Problem("secure aggregation", found=found, expected=expected)])


def _only(rows: dict[int, bytes], members: Iterable[int]) -> dict[int, bytes]:
    if rows.keys() != set(members):
        found, expected = "rows of other members", "one of each member that was asked for"
        raise MessageRefused([Problem("secure aggregation", found=found, expected=expected)])
    return rows
