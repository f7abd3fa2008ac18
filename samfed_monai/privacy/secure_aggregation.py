"""Secure aggregation: sites send masked vectors, and the server learns only their weighted sum.

Bonawitz et al., *Practical secure aggregation for privacy-preserving machine learning* (CCS 2017), figure 4, for an
honest-but-curious server, so without signatures. Keys are X25519 with HKDF-SHA256, masks the key stream of ChaCha20,
shares are encrypted by ChaCha20-Poly1305, all from the package ``cryptography``; arithmetic is modulo 2^64. A member's
vector is ``values + PRG(own seed) + sum of ± PRG(seed of a pair)``: the masks of pairs cancel in the sum; own seeds of
members in the sum, and masking keys of members that dropped out, are reconstructed from shares that the others hold.
Never both of one member.

Sites train as usual, and keep the update that passed their release filter. Four short exchanges over any transport
follow: keys, sealed shares, masked vectors, and the shares that unmask the sum. The strategy gets the weighted mean as
a single update.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samfed_monai.core import tensor_file
from samfed_monai.core.io import append_line, locked, read_json, write_json
from samfed_monai.privacy.audit import json_lines
from samfed_monai.protocol.guard import Inbox
from samfed_monai.protocol.message import Kind, Message, MessageRefused, message_refused
from samfed_monai.protocol.transport import Failure, Task, Transport

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from numpy.typing import NDArray

    from samfed_monai.privacy.rules import SecureAggregation
    from samfed_monai.protocol.strategy import Strategy

    Vector = NDArray[np.int64]

#: Requests to a site after its training, in this order.
STEPS = (Task.KEYS, Task.SHARES, Task.MASKED, Task.UNMASK)
#: Field of the shares: a Mersenne prime, larger than any secret of 32 bytes.
PRIME = 2**521 - 1
#: Bytes of a secret, of two public keys, of a share, and of two encrypted shares with nonce and tag.
SECRET, KEYS, SHARE = 32, 64, 66
SEALED = 12 + 2 * SHARE + 16
Rows = Mapping[int, bytes]
"""Bytes by member: keys, sealed shares or shares."""
_TABLE, _VECTOR = "table", "masked"


def split_secret(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Splits a secret into shares: any ``threshold`` of them reveal it, fewer reveal nothing (Shamir, CACM 1979).

    Args:
        secret: :data:`SECRET` bytes.
        holders: different numbers >= 0.
        threshold: from 1 to the number of holders.
    """
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * (holder + 1) + coefficient) % PRIME
        shares[holder] = value.to_bytes(SHARE, "big")
    return shares


def join_shares(shares: Rows) -> bytes:
    """Reconstructs a secret from at least ``threshold`` shares: the polynomial at 0.

    Args:
        shares: shares by holder.

    Raises:
        MessageRefused: the result is no secret; a share was wrong, or there were too few.
    """
    secret = 0
    for holder, share in shares.items():
        numerator = denominator = 1
        for other in shares:
            if other != holder:
                numerator, denominator = numerator * (other + 1) % PRIME, denominator * (other - holder) % PRIME
        secret = (secret + int.from_bytes(share, "big") * numerator * pow(denominator, -1, PRIME)) % PRIME
    if secret >= 2 ** (8 * SECRET):
        raise _refusal("shares that do not match", "shares of one secret, at least the threshold")
    return secret.to_bytes(SECRET, "big")


def key_stream(seed: bytes, count: int) -> Vector:
    """Returns ``count`` pseudo-random numbers of 64 bits: ChaCha20's key stream.

    Args:
        seed: :data:`SECRET` bytes that have no other use.
        count: how many numbers.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    content = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    return np.frombuffer(content, dtype="<i8")


def shared_secret(private: X25519PrivateKey, public: bytes, purpose: bytes) -> bytes:
    """Derives the secret of two members, the same from either one's private key and the other's public key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), SECRET, salt=None, info=b"samfed " + purpose).derive(shared)


def require_keys(keys: bytes, others: Collection[bytes]) -> None:
    """Checks a member's two public keys before they are sent to the others, all of which would fail on invalid ones.

    Args:
        keys: :data:`KEYS` bytes, see :meth:`Member.keys`.
        others: keys of earlier members.

    Raises:
        MessageRefused: a point of small order, with which no secret can be agreed (RFC 7748, section 6.1), or the keys
            of another member.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    probe = X25519PrivateKey.generate()
    try:
        for public in (keys[:SECRET], keys[SECRET:]):
            shared_secret(probe, public, b"probe")
    except ValueError:
        raise _refusal("a key that allows no shared secret", "two valid public keys of X25519") from None
    if keys in others:
        raise _refusal("the keys of another member", "the member's own keys")


class Member:
    """One member's part in one sum, with keys and a seed of its own for each sum.

    The order is :meth:`keys`, :meth:`shares`, :meth:`masked`, :meth:`unmask`, each once (:class:`SecureSite`).

    Args:
        number: the member's index, from 0.
        threshold: minimum number of members to unmask a sum, at least 2.
    """

    def __init__(self, number: int, threshold: int) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.number, self.threshold = number, threshold
        self._sealing_key, self._masking_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(SECRET)
        self._keys: dict[int, bytes] = {}
        self._shares_here: dict[int, bytes] = {}

    def keys(self) -> bytes:
        """Returns the two public keys, for shares and for masks."""
        return self._sealing_key.public_key().public_bytes_raw() + self._masking_key.public_key().public_bytes_raw()

    def shares(self, keys: Rows) -> dict[int, bytes]:
        """Returns shares of the seed and of the masking key, each encrypted for one other member.

        Args:
            keys: public keys of all members, including this one.

        Raises:
            MessageRefused: fewer members than the threshold, wrong keys for this member, or the same keys twice.
        """
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._require_enough(keys)
        if keys.get(self.number) != self.keys() or len(set(keys.values())) < len(keys):
            raise _refusal("a wrong list of keys", "this site's own key, and the key of each other site once")
        self._keys = dict(keys)
        seeds = split_secret(self._seed, sorted(keys), self.threshold)
        maskings = split_secret(self._masking_key.private_bytes_raw(), sorted(keys), self.threshold)
        self._shares_here = {self.number: seeds[self.number] + maskings[self.number]}
        sealed = {}
        for other in sorted(keys.keys() - {self.number}):
            nonce, content = os.urandom(12), seeds[other] + maskings[other]
            cipher = ChaCha20Poly1305(shared_secret(self._sealing_key, keys[other][:SECRET], b"shares"))
            sealed[other] = nonce + cipher.encrypt(nonce, content, _direction(self.number, other))
        return sealed

    def masked(self, values: Vector, sealed: Rows) -> Vector:
        """Returns ``values`` with all masks added: uniformly distributed to anyone without the masks.

        Args:
            values: (P,) this member's part of the sum.
            sealed: encrypted shares for this member by sender; these senders are the pairs of its masks.

        Raises:
            MessageRefused: fewer members than the threshold, a sender without keys, or shares changed in transit.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        if sealed.keys() - self._keys.keys() or self.number in sealed:
            raise _refusal("shares of another sender", "shares of the other members")
        self._require_enough([self.number, *sealed])
        total = values + key_stream(self._seed, len(values))
        for other, content in sealed.items():
            try:
                cipher = ChaCha20Poly1305(shared_secret(self._sealing_key, self._keys[other][:SECRET], b"shares"))
                self._shares_here[other] = cipher.decrypt(content[:12], content[12:], _direction(other, self.number))
            except InvalidTag:
                raise _refusal("shares that changed in transit", "shares as another site encrypted them") from None
            total += _pair_mask(self._masking_key, self.number, self._keys[other], other, len(values))
        return total

    def unmask(self, survivors: Collection[int]) -> dict[int, bytes]:
        """Returns shares of each survivor's seed and of every other member's masking key, and deletes them.

        Args:
            survivors: members whose vectors are in the sum.

        Raises:
            MessageRefused: fewer members than the threshold, or a member without shares here.
        """
        self._require_enough(survivors)
        shares, self._shares_here = self._shares_here, {}
        if set(survivors) - shares.keys():
            raise _refusal("members without shares at this site", "members of this round, once each")
        return {other: share[:SHARE] if other in survivors else share[SHARE:] for other, share in shares.items()}

    def _require_enough(self, members: Collection[int]) -> None:
        if len(members) < self.threshold:
            expected = f"at least the threshold of {self.threshold}, which hides each update"
            raise _refusal(f"{len(members)} members", expected)


def _direction(sender: int, receiver: int) -> bytes:
    """Returns the associated data of the cipher, which prevents sending shares back to their sender."""
    return f"{sender} to {receiver}".encode()


def _pair_mask(masking: X25519PrivateKey, own: int, keys: bytes, other: int, count: int) -> Vector:
    """Returns the mask of a pair as ``own`` adds it, with opposite signs at the two members."""
    mask = key_stream(shared_secret(masking, keys[SECRET:], b"mask"), count)
    return mask if own < other else -mask


def unmask_sum(total: Vector, *, survivors: Collection[int], shares: Mapping[int, Rows], keys: Rows) -> Vector:
    """Returns the sum of the survivors' values, given the sum of their masked vectors.

    Args:
        total: (P,) the sum of the masked vectors, modulo 2^64.
        survivors: members whose vectors are in it; each has a mask with every member that has shares here.
        shares: results of :meth:`Member.unmask` by member, from at least the threshold of members.
        keys: public keys of all of them.

    Raises:
        MessageRefused: shares that do not belong together.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    values = total.copy()
    for member in sorted(next(iter(shares.values()))):
        secret = join_shares({holder: member_shares[member] for holder, member_shares in shares.items()})
        if member in survivors:
            values -= key_stream(secret, len(values))
            continue
        masking = X25519PrivateKey.from_private_bytes(secret)
        if masking.public_key().public_bytes_raw() != keys[member][SECRET:]:
            raise _refusal("shares of another key", "shares of the key that this member published")
        for other in survivors:
            values += _pair_mask(masking, member, keys[other], other, len(values))
    return values


def as_vector(tensors: Mapping[str, Tensor], *, weight: int, fraction_bits: int, members: int) -> Vector:
    """Returns ``weight * round(entries * 2^fraction_bits)`` of all tensors, in the order of names.

    Args:
        tensors: finite tensors by name.
        weight: weight of this member in the sum, >= 1.
        fraction_bits: number of fractional bits; integers have none.
        members: number of vectors in the sum, assumed to be as large as this one.

    Raises:
        MessageRefused: values so large that the sum might exceed 63 bits.
    """
    parts, most = [], 2.0**62 / members / weight
    for name in sorted(tensors):
        values = tensors[name].detach().cpu()
        scale = 2.0**fraction_bits if values.is_floating_point() else 1.0
        scaled = np.rint(values.double().numpy().ravel() * scale)
        largest = float(np.abs(scaled).max(initial=0.0))
        if not largest <= most:
            expected = f"numbers of at most {most / scale:.3g}, so that the sum fits in 64 bits"
            hint = "lower privacy#secure_aggregation#fraction_bits"
            raise _refusal(f"{largest / scale:.3g}, weighted by {weight} images", expected, hint)
        parts.append(scaled.astype(np.int64) * weight)
    return np.concatenate(parts)


def as_mean(total: Vector, like: Mapping[str, Tensor], *, weight: int, fraction_bits: int) -> dict[str, Tensor]:
    """Converts a sum of :func:`as_vector` to the weighted mean, with the names, shapes and dtypes of ``like``.

    Args:
        total: (P,) the sum.
        like: the model.
        weight: the sum of weights.
        fraction_bits: see :func:`as_vector`. Integers are rounded to the nearest.
    """
    mean, start = {}, 0
    for name in sorted(like):
        tensor = like[name]
        values = torch.from_numpy(total[start : start + tensor.numel()].astype(np.float64)) / weight
        values = values * 2.0**-fraction_bits if tensor.is_floating_point() else values.round()
        mean[name] = values.reshape(tensor.shape).to(tensor.dtype)
        start += tensor.numel()
    return {name: mean[name] for name in like}


def record_sum(path: Path, run: str, round: int, update: str, members: Sequence[str]) -> None:
    """Enters a sum in a site's file before its shares leave, and refuses to unmask it again with other members.

    The difference of two sums with the same updates of all members but one is the update of that one. A round that is
    repeated after a crash gives the same updates, so its sum must have the same members. Every sum needs shares from a
    majority of all sites, so at least one site has given shares for both.

    Args:
        path: file of lines; deleting it removes the protection of earlier sums.
        run: the plan's ``updates_hash``: runs of such a plan give the same updates, whatever their name or timeouts.
        round: from 0.
        update: :func:`update_hash` of this site's update.
        members: names of the sites whose vectors are in the sum, sorted.

    Raises:
        MessageRefused: a sum of this update, or of this round of this plan, had other members.
        OSError: the file could not be written.
    """
    with locked(path):
        # shares never left after an incomplete line
        entries = [entry for entry in json_lines(path) if entry is not None]
        same = [each for each in entries if each["update"] == update or (each["run"], each["round"]) == (run, round)]
        for earlier in (each["members"] for each in same):
            if earlier != members:
                differences = [f"{name} added" for name in members if name not in earlier]
                differences += [f"{name} missing" for name in earlier if name not in members]
                expected = f"the members of the earlier unmasked sum of this update: {', '.join(earlier)}"
                hint = "resume when all of them are there, or start a run with another seed"
                raise _refusal(", ".join(differences), expected, hint)
        if not same:
            entry = {"run": run, "round": round, "update": update, "members": members}
            append_line(path, json.dumps(entry, ensure_ascii=False))


def update_hash(update: Message) -> str:
    """Returns the SHA-256 of an update: names, dtypes, shapes and bits of its tensors, and its number of images."""
    digest = hashlib.sha256(f"{update.n} ".encode())
    for piece in tensor_file.pieces(update.tensors):
        digest.update(piece)
    return digest.hexdigest()


class SecureSite:
    """A site's part: keeps the update of its training until the masked vector is requested.

    Args:
        site: the site's name.
        sites: names of all sites that train.
        settings: threshold and precision.
        sums: file of the sums that this site has helped to unmask (:func:`record_sum`).
        run: identity of the run, the plan's hash.
    """

    def __init__(self, site: str, sites: Iterable[str], settings: SecureAggregation, sums: Path, run: str) -> None:
        self.sites, self.settings, self.sums, self.run = sorted(sites), settings, sums, run
        self.number = self.sites.index(site)
        self._next_steps: list[Task] = []

    def hold(self, update: Message) -> Message:
        """Keeps the tensors of a reply to a training, and returns its metrics, which leave at once."""
        if not update.tensors:
            return update
        self._update, self._next_steps = update, list(STEPS)
        return replace(update, kind=Kind.METRICS, tensors={}, extra={})

    def answer(self, task: Task, message: Message) -> Message:
        """Executes one of :data:`STEPS`; a refused step is the last of its round.

        Raises:
            MessageRefused: a step out of order or of another round, or a refusal of :class:`Member`.
        """
        if not self._next_steps or self._next_steps[0] != task or self._update.round != message.round:
            raise _refusal(f"{Task(task).value} out of order", "the steps of one round in order, after its training")
        remaining, self._next_steps = self._next_steps[1:], []  # no next step until this one is done
        update, sites = self._update, len(self.sites)
        match task:
            case Task.KEYS:
                self._member = Member(self.number, self.settings.threshold_of(sites))
                tensors = as_table({self.number: self._member.keys()}, sites)
            case Task.SHARES:
                tensors = as_table(self._member.shares(_rows(message, KEYS, sites)), sites)
            case Task.MASKED:
                bits = self.settings.fraction_bits
                vector = as_vector(update.tensors, weight=update.n, fraction_bits=bits, members=sites)
                tensors = {_VECTOR: torch.from_numpy(self._member.masked(vector, _rows(message, SEALED, sites)))}
            case _:
                member = self._member
                del self._update, self._member  # with seed and keys, even if the step is refused
                survivors = sorted(_rows(message, 1, sites))
                tensors = as_table(member.unmask(survivors), sites)
                names = [self.sites[number] for number in survivors]
                record_sum(self.sums, self.run, update.round, update_hash(update), names)
        self._next_steps = remaining
        return replace(update, kind=Kind.SECURE, tensors=tensors, metrics={}, extra={})


class BelowThreshold(Exception):
    """Too few sites are left to unmask their sum.

    Args:
        left: number of sites left.
        needed: the threshold.
        failures: reasons by site that dropped out.
    """

    def __init__(self, left: int, needed: int, failures: Mapping[str, str]) -> None:
        super().__init__(f"{left} updates could be added, but {needed} are needed")
        self.left, self.needed, self.failures = left, needed, dict(failures)


class OtherMembers(Exception):
    """A repeated round cannot complete the sum that was started before: a member is missing.

    Args:
        started: members of that sum.
        missing: members that are missing now.
    """

    def __init__(self, started: Sequence[str], missing: Sequence[str]) -> None:
        super().__init__(f"its sum started with {', '.join(started)}, but {', '.join(missing)} did not return")


@dataclass
class SecureServer:
    """The server's part: collects the sum of the sites' updates, for a strategy that needs only their mean.

    The server learns the sum over the sites that sent a masked vector, weighted by their numbers of images, and these
    numbers. The update guard sees only the mean. Sites are trusted: a wrong vector makes the mean wrong.

    The members of a sum are stored before its shares are requested. A round that is repeated, after a crash or below
    the threshold, has the same members or no sum at all; sites enforce this (:func:`record_sum`).

    Args:
        settings: threshold and precision.
        strategy: the strategy that gets the mean, attached to its run.
        transport: carries messages.
        members_file: file with the members of the last sum.
        timeout: seconds that each of the four exchanges may take; ``None`` waits without limit.
    """

    settings: SecureAggregation
    strategy: Strategy
    transport: Transport
    members_file: Path
    timeout: float | None = None
    #: By site, why its update is not in the last sum although it trained.
    dropped: dict[str, Failure] = field(default_factory=dict, init=False)
    _images: dict[str, int] = field(default_factory=dict, init=False)

    @cached_property
    def sites(self) -> list[str]:
        """Sorted names of the sites that train; known once the strategy is attached."""
        return sorted(self.strategy.server.sites)

    @cached_property
    def threshold(self) -> int:
        """Number of sites whose shares are required to unmask."""
        return self.settings.threshold_of(len(self.sites))

    def take(self, round: int, site: str, update: Message) -> None:
        """Records that a site has trained, and its number of images.

        Raises:
            MessageRefused: the number of images is 0.
        """
        if update.n < 1:
            raise message_refused("message -> n", str(update.n), "at least 1")
        self._images[site] = update.n

    def finish(self, round: int) -> None:
        """Runs the exchanges of a sum, and passes the mean to the strategy.

        Raises:
            BelowThreshold: too few sites completed all steps.
            OtherMembers: this round's sum was started before with a site that is missing now; the model is unchanged.
            MessageRefused: the unmasked sum is no model; the faulty site cannot be identified.
        """
        images, self._images, self.dropped = self._images, {}, {}
        if members := self._started_members(round):
            left_out = "this round's sum was started without it, before a restart"
            self.dropped = {site: Failure(site, left_out) for site in images.keys() - set(members)}
            images = {site: n for site, n in images.items() if site in members}
            self._record_members(round, images)
        total, survivors = self._sum(round, images)
        weight, like = sum(images[site] for site in survivors), self.strategy.global_weights
        mean = as_mean(total, like, weight=weight, fraction_bits=self.settings.fraction_bits)
        update = self.strategy.mean_update(round, mean, weight)
        update.check(up=False, like=like)
        self.strategy.take(round, update.site, update)
        self.strategy.finish(round)

    def _started_members(self, round: int) -> list[str]:
        """Returns the members of this round's sum if one was started before, else an empty list."""
        stored: dict[str, Any] = read_json(self.members_file) if self.members_file.is_file() else {}
        return list(stored["members"]) if stored.get("round") == round else []

    def _record_members(self, round: int, survivors: Iterable[str]) -> None:
        """Stores the members of this round's sum.

        Raises:
            OtherMembers: a sum with a member that is now missing was started before.
        """
        members = self._started_members(round)
        if missing := sorted(set(members) - set(survivors)):
            raise OtherMembers(members, missing)
        if not members:
            write_json(self.members_file, {"round": round, "members": sorted(survivors)})

    def _sum(self, round: int, images: Mapping[str, int]) -> tuple[Vector, list[str]]:
        index_of = {site: index for index, site in enumerate(self.sites)}
        keys: dict[int, bytes] = {}
        sealed: dict[int, dict[int, bytes]] = {}
        shares: dict[int, dict[int, bytes]] = {}
        included = list[int]()
        total = np.zeros(sum(tensor.numel() for tensor in self.strategy.global_weights.values()), dtype=np.int64)

        def take_keys(member: int, reply: Message) -> None:
            (key,) = self._rows_of(reply, KEYS, {member}).values()
            require_keys(key, keys.values())
            keys[member] = key

        def take_shares(member: int, reply: Message) -> None:
            sealed[member] = self._rows_of(reply, SEALED, keys.keys() - {member})

        def take_masked(member: int, reply: Message) -> None:
            np.add(total, reply.tensors[_VECTOR].numpy(), out=total)
            included.append(member)

        def take_unmasking(member: int, reply: Message) -> None:
            shares[member] = self._rows_of(reply, SHARE, sealed.keys())

        def table(width: int) -> dict[str, Tensor]:
            return {_TABLE: torch.empty(len(self.sites), width, dtype=torch.uint8, device="meta")}

        vector = {_VECTOR: torch.empty(len(total), dtype=torch.int64, device="meta")}
        self._ask(round, Task.KEYS, {index_of[site]: {} for site in images}, take_keys, table(KEYS))
        self._ask(round, Task.SHARES, dict.fromkeys(keys, keys), take_shares, table(SEALED))
        mail = {to: {sender: rows[to] for sender, rows in sealed.items() if sender != to} for to in sealed}
        self._ask(round, Task.MASKED, mail, take_masked, vector)
        survivors = [self.sites[member] for member in included]
        self._record_members(round, survivors)
        marks = dict.fromkeys(included, b"\1")
        self._ask(round, Task.UNMASK, dict.fromkeys(included, marks), take_unmasking, table(SHARE))
        return unmask_sum(total, survivors=included, shares=shares, keys=keys), survivors

    def _rows_of(self, reply: Message, width: int, members: Collection[int]) -> dict[int, bytes]:
        rows = _rows(reply, width, len(self.sites))
        if rows.keys() != set(members):
            raise _refusal("rows of other members", "one row for each requested member")
        return rows

    def _ask(
        self,
        round: int,
        task: Task,
        tables: Mapping[int, Rows],
        take: Callable[[int, Message], None],
        like: Mapping[str, Tensor],
    ) -> None:
        """Runs one exchange; sites without a valid reply have dropped out of the round, except in the last exchange.

        Raises:
            BelowThreshold: too few sites replied.
        """
        server, remaining = self.strategy.server, set(tables)
        messages = {
            site: Message(Kind.SECURE, site, round, server.rounds, server.seed, tensors=as_table(rows, len(self.sites)))
            for site, rows in ((self.sites[member], rows) for member, rows in tables.items())
        }
        inbox = Inbox(round=round, sites=messages, like=lambda _: like, kind=Kind.SECURE)

        def on_reply(site: str, reply: Message) -> None:
            inbox.check(site, reply)
            member = self.sites.index(site)
            take(member, reply)
            remaining.add(member)

        failures: dict[str, Failure] = {}
        if len(messages) >= self.threshold:  # else no request is sent
            remaining.clear()
            options: dict[str, Any] = {"quorum": self.threshold, "timeout": self.timeout, "max_bytes": inbox.max_bytes}
            replies = self.transport.send_and_receive(task, messages, on_reply=on_reply, **options)
            failures = {site: reply for site, reply in replies.items() if isinstance(reply, Failure)}
        if len(remaining) < self.threshold:
            reasons = {site: failure.reason for site, failure in {**self.dropped, **failures}.items()}
            raise BelowThreshold(len(remaining), self.threshold, reasons)
        self.dropped |= failures if task != Task.UNMASK else {}


def as_table(rows: Rows, members: int) -> dict[str, Tensor]:
    """Converts bytes by member to a tensor with one row per member; missing rows are zeros."""
    width = max(map(len, rows.values()), default=0)
    content = b"".join(rows.get(member, bytes(width)) for member in range(members))
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(members, width) if width else None
    return {} if table is None else {_TABLE: table}


def _rows(message: Message, width: int, members: int) -> dict[int, bytes]:
    """Reverses :func:`as_table`; keys, shares and encrypted shares are all zeros with probability below 2^-500.

    Raises:
        MessageRefused: another name, shape or dtype.
    """
    table = message.tensors.get(_TABLE)
    if table is None or table.dtype != torch.uint8 or table.shape != (members, width):
        raise _refusal("another table", f"{members} rows of {width} bytes")
    return {number: row.numpy().tobytes() for number, row in enumerate(table) if row.any()}


def _refusal(found: str, expected: str, hint: str = "") -> MessageRefused:
    return message_refused("secure aggregation", found, expected, hint)
