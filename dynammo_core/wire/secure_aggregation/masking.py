"""Masks that vanish in the sum: one per pair of sites, added by one and subtracted by the other, and one per site."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Vector = NDArray[np.uint64]
"""Integers modulo 2^64, in which a uniform mask hides any value perfectly."""

KEY_BYTES = 32
PUBLIC_BYTES = 2 * KEY_BYTES


@dataclass(frozen=True)
class Context:
    """What keys and masks are bound to: nothing that is derived for one context serves in another.

    Attributes:
        run: unique name of the run.
        step: index of the step.
        attempt: random bytes that the server drew for this attempt at the step.
    """

    run: str
    step: int
    attempt: bytes

    def derive(self, secret: bytes, *purpose: str | int) -> bytes:
        """Derive 32 bytes for a purpose from a secret (HKDF with SHA-256, RFC 5869)."""
        info = json.dumps(["dynammo secure aggregation", self.run, self.step, self.attempt.hex(), *purpose])
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info.encode()).derive(secret)


@dataclass(frozen=True)
class SiteKeys:
    """All keys that a site needs for one attempt, derived from its one secret, so that they need not be stored.

    Attributes:
        channel: key under which it receives the others' shares.
        masking: key from which its masks with other sites come; shared out, and opened if the site drops out.
        own: seed of its own mask; shared out, and opened if the site does not drop out.
        random: random bytes for the polynomials that share out these two.
    """

    channel: bytes
    masking: bytes
    own: bytes
    random: bytes

    @staticmethod
    def derive(secret: bytes, context: Context, site: int) -> SiteKeys:
        """Derive a site's keys for an attempt from its secret."""
        return SiteKeys(*(context.derive(secret, name, site) for name in ("channel", "masking", "own", "random")))

    @property
    def public(self) -> bytes:
        """Return the site's public keys, that of `channel` and then that of `masking`."""
        return public_key(self.channel) + public_key(self.masking)


def public_key(private: bytes) -> bytes:
    """Return the public key of a private X25519 key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """Return the secret that two sites share (X25519, RFC 7748).

    Raises:
        ValueError: the public key is invalid.
    """
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def keystream(seed: bytes, length: int) -> bytes:
    """Return `length` pseudorandom bytes (ChaCha20, RFC 8439); every seed is used for one stream alone."""
    return Cipher(ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(length))


def mask(seed: bytes, length: int) -> Vector:
    """Return a pseudorandom vector of `length` integers."""
    return np.frombuffer(keystream(seed, 8 * length), dtype="<u8").astype(np.uint64, copy=False)


def masked(vector: Vector, site: int, keys: SiteKeys, roster: Mapping[int, bytes], context: Context) -> Vector:
    """Return the vector with the site's own mask and its masks with all other sites of the roster added.

    Args:
        vector: [N].
        site: the site whose vector it is.
        keys: the keys of that site.
        roster: public keys of all sites that have dealt shares, by site.
        context: the context of this attempt.

    Raises:
        ValueError: a public key is invalid.
    """
    hidden = vector + mask(keys.own, len(vector))
    _add_pairwise(hidden, site, keys.masking, roster, roster, context)
    return hidden


def unmasked(
    total: Vector,
    own: Iterable[bytes],
    lost: Mapping[int, bytes],
    survivors: Iterable[int],
    roster: Mapping[int, bytes],
    context: Context,
) -> Vector:
    """Return the sum of the survivors' vectors, with all masks removed.

    Args:
        total: sum of their masked vectors, [N].
        own: seed of each survivor's own mask.
        lost: masking key of each site whose vector did not come, by site.
        survivors: sites whose vectors are in the sum.
        roster: public keys of both kinds of sites, by site.
        context: the context of this attempt.

    Raises:
        ValueError: a key is not the one behind the site's public key.
    """
    total = total.copy()
    for seed in own:
        total -= mask(seed, len(total))
    present = list(survivors)
    for site, key in lost.items():
        if public_key(key) != roster[site][KEY_BYTES:]:
            raise ValueError(f"the shares of site {site} do not reconstruct its key")
        # The sum lacks what the lost site would have added, so it is added here.
        _add_pairwise(total, site, key, present, roster, context)
    return total


def _add_pairwise(
    vector: Vector, site: int, key: bytes, others: Iterable[int], roster: Mapping[int, bytes], context: Context
) -> None:
    """Add, in place, a site's masks with other sites: positive for higher site numbers, negative for lower ones."""
    for other in others:
        if other == site:
            continue
        pair = sorted((site, other))
        shared = mask(context.derive(agree(key, roster[other][KEY_BYTES:]), "pair", *pair), len(vector))
        if site < other:
            vector += shared
        else:
            vector -= shared
