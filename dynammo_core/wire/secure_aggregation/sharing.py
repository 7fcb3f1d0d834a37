"""Shares of a site's two secrets, encrypted for each site: the server carries them and cannot read them."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dynammo_core.wire.secure_aggregation.masking import KEY_BYTES, Context, SiteKeys, agree, keystream
from dynammo_core.wire.secure_aggregation.shamir import RANDOM_BYTES, SHARE_BYTES, split

TAG_BYTES = 16
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Length of an encrypted pair of shares: that of the sender's own mask, and that of its masking key."""


def deal(site: int, keys: SiteKeys, roster: Mapping[int, bytes], threshold: int, context: Context) -> dict[int, bytes]:
    """Return a pair of shares for each site of the roster, the dealer included, encrypted for that site.

    Raises:
        ValueError: a public key in the roster is invalid.
    """
    needed = RANDOM_BYTES * (threshold - 1)
    random = keystream(keys.random, 2 * needed)
    own = split(keys.own, list(roster), threshold, random[:needed])
    masking = split(keys.masking, list(roster), threshold, random[needed:])
    return {
        other: _cipher(keys, public, context, site, other).encrypt(bytes(12), own[other] + masking[other], None)
        for other, public in roster.items()
    }


def opened(
    site: int, keys: SiteKeys, sender: int, public: bytes, sealed: bytes, context: Context
) -> tuple[bytes, bytes]:
    """Decrypt the pair of shares that a sender has dealt to this site: of its own mask, and of its masking key.

    Raises:
        ValueError: they are not what was dealt, or were not dealt to this site in this attempt.
    """
    try:
        plain = _cipher(keys, public, context, sender, site).decrypt(bytes(12), sealed, None)
    except InvalidTag as error:
        raise ValueError(f"these are not the shares that site {sender} dealt to site {site} in this attempt") from error
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]


def _cipher(keys: SiteKeys, public: bytes, context: Context, sender: int, receiver: int) -> AESGCM:
    """Return AES-256-GCM under a key for one message alone, which is the same if dealt again: no nonce is needed."""
    return AESGCM(context.derive(agree(keys.channel, public[:KEY_BYTES]), "shares", sender, receiver))
