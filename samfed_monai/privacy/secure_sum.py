"""A sum whose parts stay hidden: pairwise masks and self-masks, and shares of them for those who drop out.

Bonawitz et al., *Practical secure aggregation for privacy-preserving machine learning* (CCS 2017), figure 4, for a
server that does what it should and looks at everything (honest but curious): there are no signatures. Keys are X25519
with HKDF-SHA256, masks the key stream of ChaCha20, shares travel under ChaCha20-Poly1305, all of the package
``cryptography``; numbers are 64 bits wide, modulo 2^64. A member's vector is ``values + PRG(own seed) + sum of
± PRG(seed of a pair)``: masks of pairs cancel in the sum; the own seeds of who is in it, and the masking keys of who is
not, are put together from shares that the others hold. Never both of one member.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.protocol.message import MessageRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from numpy.typing import NDArray

#: Field of the shares: a Mersenne prime, larger than any secret of 32 bytes.
PRIME = 2**521 - 1
#: Bytes of a secret, of two public keys, of a share, and of two shares under a cipher with its nonce and its tag.
SECRET, KEYS, SHARE = 32, 64, 66
SEALED = 12 + 2 * SHARE + 16


def require_cryptography(where: str) -> None:
    """Refuses a run whose masks cannot be made.

    Args:
        where: the setting that needs the package.

    Raises:
        Refused: ``cryptography`` is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError:
        hint = "pip install 'samfed-monai[privacy]'"
        raise Refused([Problem(where, found="no cryptography", expected="its keys and ciphers", hint=hint)]) from None


def split(secret: bytes, holders: Sequence[int], threshold: int) -> dict[int, bytes]:
    """Shares of a secret, any ``threshold`` of which give it back and fewer of which say nothing (Shamir, CACM 1979).

    Args:
        secret: :data:`SECRET` bytes.
        holders: different numbers from 0.
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


def joined(shares: Mapping[int, bytes]) -> bytes:
    """The secret, out of at least as many shares as its threshold was: the polynomial at 0.

    Args:
        shares: holder to share.

    Raises:
        MessageRefused: what comes out is no secret; a share was wrong, or there were too few.
    """
    secret = 0
    for holder, share in shares.items():
        over = under = 1
        for other in shares:
            if other != holder:
                over, under = over * (other + 1) % PRIME, under * (other - holder) % PRIME
        secret = (secret + int.from_bytes(share, "big") * over * pow(under, -1, PRIME)) % PRIME
    if secret >= 2 ** (8 * SECRET):
        raise _refusal("shares that do not belong together", "shares of one secret, as many as the threshold")
    return secret.to_bytes(SECRET, "big")


def stream(seed: bytes, count: int) -> NDArray[np.int64]:
    """``count`` pseudo-random numbers of 64 bits: ChaCha20's key stream.

    Args:
        seed: :data:`SECRET` bytes that are used for nothing else.
        count: how many.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    drawn = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    return np.frombuffer(drawn, dtype="<i8")


def agreed(private: X25519PrivateKey, public: bytes, purpose: bytes) -> bytes:
    """The secret of two members: the same from either one's private key and the other's public one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), SECRET, salt=None, info=b"samfed " + purpose).derive(shared)


def require_keys(keys: bytes, others: Iterable[bytes]) -> None:
    """Looks at a member's two public keys before they are handed to the others, all of whom they would fail.

    Args:
        keys: :data:`KEYS` bytes, as :meth:`Member.keys` gives them.
        others: those of members that came before.

    Raises:
        MessageRefused: a point of small order, with which no secret can be agreed (RFC 7748, section 6.1), or keys that
            another member has shown.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    probe = X25519PrivateKey.generate()
    try:
        for public in (keys[:SECRET], keys[SECRET:]):
            agreed(probe, public, b"probe")
    except ValueError:
        raise _refusal("a key with which no secret can be agreed", "two public keys of X25519") from None
    if keys in set(others):
        raise _refusal("the keys of another member", "keys of its own")


def quantised(values: NDArray[np.float64], *, weight: int, fraction_bits: int, members: int) -> NDArray[np.int64]:
    """``weight * round(values * 2^fraction_bits)``.

    Args:
        values: finite.
        weight: of this member in the sum, >= 1.
        fraction_bits: binary digits behind the point; 0 is for whole numbers.
        members: how many are added, each with numbers as large as these.

    Raises:
        MessageRefused: numbers so large that the sum might leave 63 bits.
    """
    scaled = np.rint(values * 2.0**fraction_bits)
    largest, most = float(np.abs(scaled).max(initial=0.0)) * weight, 2.0**62 / members
    if not largest <= most:
        found = f"a number of {np.abs(values).max():.3g}, of {weight} images"
        expected = f"at most {most / weight / 2.0**fraction_bits:.3g}, for the sum to fit in 64 bits"
        hint = "a smaller privacy#secure_aggregation#fraction_bits"
        raise MessageRefused([Problem("secure aggregation", found=found, expected=expected, hint=hint)])
    return scaled.astype(np.int64) * weight


class Member:
    """One member's part in one sum; its keys and its seed are drawn anew for each.

    The order is :meth:`keys`, :meth:`shares`, :meth:`masked`, :meth:`unmask`, each once.

    Args:
        number: its place among all, from 0.
        threshold: members without which nothing is unmasked, at least 2.
    """

    def __init__(self, number: int, threshold: int) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self.number, self.threshold = number, threshold
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(SECRET)
        self._keys: dict[int, bytes] = {}
        self._held: dict[int, bytes] = {}

    def keys(self) -> bytes:
        """Its two public keys, for shares and for masks."""
        return self._sealing.public_key().public_bytes_raw() + self._masking.public_key().public_bytes_raw()

    def shares(self, keys: Mapping[int, bytes]) -> dict[int, bytes]:
        """Shares of its seed and of its masking key, each sealed for one other member.

        Args:
            keys: of everybody who takes part, this one among them.

        Raises:
            MessageRefused: fewer than the threshold, other keys for this member than its own, or one key of two.
        """
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        if self._keys:
            raise _refusal("a second list of keys", "one in each round")
        self._require_enough(keys)
        if keys.get(self.number) != self.keys() or len(set(keys.values())) < len(keys):
            raise _refusal("a list of keys that is not in order", "this site's own key, and everybody else's once")
        self._keys = dict(keys)
        seeds = split(self._seed, sorted(keys), self.threshold)
        maskings = split(self._masking.private_bytes_raw(), sorted(keys), self.threshold)
        self._held[self.number] = seeds[self.number] + maskings[self.number]
        sealed = {}
        for other in sorted(keys.keys() - {self.number}):
            nonce, cipher = os.urandom(12), ChaCha20Poly1305(agreed(self._sealing, keys[other][:SECRET], b"shares"))
            sealed[other] = nonce + cipher.encrypt(nonce, seeds[other] + maskings[other], _way(self.number, other))
        return sealed

    def masked(self, values: NDArray[np.int64], sealed: Mapping[int, bytes]) -> NDArray[np.int64]:
        """``values`` under all masks: uniform to whoever does not have them.

        Args:
            values: (P,) this member's part of the sum.
            sealed: by sender, what the others sent for this member; they and this one are who is masked against.

        Raises:
            MessageRefused: fewer than the threshold, a sender without keys, or shares that were changed on their way.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        if len(self._held) != 1 or sealed.keys() - self._keys.keys() or self.number in sealed:
            raise _refusal("shares out of their turn", "those of the others, once")
        self._require_enough([self.number, *sealed])
        for other, content in sealed.items():
            try:
                cipher = ChaCha20Poly1305(agreed(self._sealing, self._keys[other][:SECRET], b"shares"))
                self._held[other] = cipher.decrypt(content[:12], content[12:], _way(other, self.number))
            except InvalidTag:
                raise _refusal("shares that were changed on their way", "what another site sealed") from None
        total = values + stream(self._seed, len(values))
        for other in sealed:
            total += _pair_mask(self._masking, self.number, self._keys[other], other, len(values))
        return total

    def unmask(self, survivors: Iterable[int]) -> dict[int, bytes]:
        """Its shares: of the seed of each survivor, and of the masking key of everybody else; then it forgets all.

        Args:
            survivors: members whose vectors are in the sum.

        Raises:
            MessageRefused: fewer than the threshold, or a member whose shares are not here.
        """
        inside, held = set(survivors), self._held
        self._require_enough(inside)
        if len(held) < 2 or inside - held.keys():
            raise _refusal("members whose shares are not here", "those of this round, once")
        self._held = {}
        return {other: share[:SHARE] if other in inside else share[SHARE:] for other, share in held.items()}

    def _require_enough(self, members: Iterable[int]) -> None:
        count = len(set(members))
        if count < self.threshold:
            raise _refusal(f"{count} members", f"at least {self.threshold}, the threshold, so that no update is alone")


def _way(sender: int, receiver: int) -> bytes:
    """Goes into the cipher's tag, so that shares cannot be sent back to who sealed them."""
    return f"{sender} to {receiver}".encode()


def _pair_mask(masking: X25519PrivateKey, own: int, keys: bytes, other: int, count: int) -> NDArray[np.int64]:
    """The mask of a pair as ``own`` adds it: one of the two adds what the other takes away."""
    mask = stream(agreed(masking, keys[SECRET:], b"mask"), count)
    return mask if own < other else -mask


def unmasked(
    total: NDArray[np.int64],
    *,
    survivors: Iterable[int],
    dropped: Iterable[int],
    shares: Mapping[int, Mapping[int, bytes]],
    keys: Mapping[int, bytes],
) -> NDArray[np.int64]:
    """The sum of the survivors' values, out of the sum of their masked vectors.

    Args:
        total: (P,) that sum, modulo 2^64.
        survivors: members whose vectors are in it.
        dropped: members whom the survivors have masked against, and whose vectors are not in it.
        shares: member to what :meth:`Member.unmask` gave there, from at least as many as the threshold.
        keys: public keys of all of them.

    Raises:
        MessageRefused: shares that do not belong together.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    inside, values = sorted(survivors), total.copy()
    for member in inside:
        values -= stream(joined({holder: own[member] for holder, own in shares.items()}), len(values))
    for member in sorted(dropped):
        secret = joined({holder: own[member] for holder, own in shares.items()})
        masking = X25519PrivateKey.from_private_bytes(secret)
        if masking.public_key().public_bytes_raw() != keys[member][SECRET:]:
            raise _refusal("shares of another key", "shares of the key that this member has shown")
        for other in inside:
            values += _pair_mask(masking, member, keys[other], other, len(values))
    return values


def _refusal(found: str, expected: str) -> MessageRefused:
    return MessageRefused([Problem("secure aggregation", found=found, expected=expected)])
