"""Shamir's secret sharing (1979): any t of n shares give a secret back, and fewer reveal nothing about it.

The secret is the value at 0 of a polynomial of degree t - 1 modulo a prime, a share its value at the holder's number
plus one. The caller passes the random bytes, so that a site that is asked again deals the same shares again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SECRET_BYTES = 32
PRIME = 2**256 + 297
"""The smallest prime above all secrets."""

SHARE_BYTES = 33
RANDOM_BYTES = 48
"""Random bytes per coefficient: enough bits beyond the prime's that all values are equally likely (within 2^-127)."""


def split(secret: bytes, holders: Sequence[int], threshold: int, random: bytes) -> dict[int, bytes]:
    """Split a secret into a share for each holder, of which any `threshold` are enough to recover it.

    Args:
        secret: 32 bytes.
        holders: numbers from 0; a holder's share depends on its own number and not on who else there is.
        threshold: t, at least 1.
        random: 48 (t - 1) bytes that nobody else knows.

    Raises:
        ValueError: the secret or the randomness has another length.
    """
    if len(secret) != SECRET_BYTES or len(random) != RANDOM_BYTES * (threshold - 1):
        raise ValueError(
            f"{len(secret)} secret and {len(random)} random bytes do not make a polynomial of degree {threshold - 1}"
        )
    pieces = (random[start : start + RANDOM_BYTES] for start in range(0, len(random), RANDOM_BYTES))
    coefficients = [int.from_bytes(secret, "big"), *(int.from_bytes(piece, "big") % PRIME for piece in pieces)]
    return {holder: _value(coefficients, holder + 1).to_bytes(SHARE_BYTES, "big") for holder in holders}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover the secret from `threshold` shares, by holder: Lagrange's polynomial at 0.

    Raises:
        ValueError: there are fewer shares, or they do not belong to one secret.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares are too few to recover a secret that needs {threshold}")
    chosen = sorted(shares)[:threshold]
    secret = 0
    for holder in chosen:
        numerator, denominator = 1, 1
        for other in chosen:
            if other != holder:
                numerator = numerator * (other + 1) % PRIME
                denominator = denominator * (other - holder) % PRIME
        secret += int.from_bytes(shares[holder], "big") * numerator * pow(denominator, -1, PRIME)
    try:
        return (secret % PRIME).to_bytes(SECRET_BYTES, "big")
    except OverflowError as error:
        raise ValueError("the shares do not belong to one secret") from error


def _value(coefficients: Sequence[int], at: int) -> int:
    """Evaluate the polynomial with these coefficients, constant first, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % PRIME
    return value
