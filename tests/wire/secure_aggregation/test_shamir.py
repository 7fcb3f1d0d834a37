"""Shamir's sharing: any t shares give the secret, and t - 1 fit every secret there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynammo_core.wire.secure_aggregation.shamir import PRIME, RANDOM_BYTES, SHARE_BYTES, combine, split

SECRET = bytes(range(32))


def randomness(threshold: int) -> bytes:
    return bytes(index * 37 % 251 for index in range(RANDOM_BYTES * (threshold - 1)))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6))
def test_any_t_shares_give_the_secret(secret: bytes, threshold: int) -> None:
    shares = split(secret, range(6), threshold, randomness(threshold))
    assert all(len(share) == SHARE_BYTES for share in shares.values())
    for chosen in combinations(shares, threshold):
        assert combine({holder: shares[holder] for holder in chosen}, threshold) == secret


def test_shares_of_a_line_are_its_values() -> None:
    """2 of n: secret + random * (holder + 1), by hand."""
    slope = 5
    shares = split((7).to_bytes(32, "big"), [0, 2], 2, slope.to_bytes(RANDOM_BYTES, "big"))
    assert {holder: int.from_bytes(share, "big") for holder, share in shares.items()} == {0: 7 + 5, 2: 7 + 3 * 5}


def test_a_coefficient_is_all_of_its_random_bytes_modulo_the_prime() -> None:
    """By hand: 2^256 is -297 modulo the prime, so 48 bytes of ones, 2^384 - 1, are -297 * 2^128 - 1."""
    ones = PRIME - 297 * 2**128 - 1
    shares = split(bytes(32), [0, 1], 3, b"\xff" * RANDOM_BYTES + bytes(RANDOM_BYTES - 1) + b"\x02")
    values = {holder: int.from_bytes(share, "big") for holder, share in shares.items()}
    assert values == {0: (ones + 2) % PRIME, 1: (2 * ones + 4 * 2) % PRIME}
    # 2^256 - 297 * 2^128 + 298, written out so that no reduction of this file stands on both sides; 297 is 0x129.
    assert shares[0].hex() == "00" + "f" * 29 + "ed7" + "0" * 29 + "12a"


def test_the_modulus_is_a_prime_above_all_secrets() -> None:
    assert PRIME > 2**256 - 1
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13))  # Fermat
    assert combine(split(b"\xff" * 32, range(3), 3, b"\xff" * 96), 3) == b"\xff" * 32


def test_fewer_than_t_shares_fit_every_secret() -> None:
    """Two of three needed: whatever the third were, some secret fits, another one each time."""
    shares = split(SECRET, range(3), 3, randomness(3))
    known = {holder: shares[holder] for holder in (0, 1)}
    fitting = set()
    for guess in range(64):
        try:
            fitting.add(combine({**known, 2: guess.to_bytes(SHARE_BYTES, "big")}, 3))
        except ValueError:  # one of the 297 values of the field that are no 32 bytes
            continue
    assert len(fitting) == 64
    with pytest.raises(ValueError, match="2 shares are too few to recover"):
        combine(known, 3)


def test_a_holders_share_does_not_depend_on_the_others() -> None:
    """So that a dealer who is asked with other sites encrypts the same for the same one, and no nonce serves twice."""
    few, many = (split(SECRET, holders, 3, randomness(3)) for holders in ([1, 4], range(9)))
    assert few == {holder: many[holder] for holder in (1, 4)}


@pytest.mark.parametrize(("secret", "random"), [(b"short", bytes(96)), (SECRET, bytes(95)), (SECRET, b"")])
def test_what_makes_no_polynomial_is_refused(secret: bytes, random: bytes) -> None:
    with pytest.raises(ValueError, match="do not make a polynomial"):
        split(secret, range(3), 3, random)


def test_shares_of_different_secrets_give_nonsense_or_nothing() -> None:
    one, other = (split(secret, range(2), 2, randomness(2)) for secret in (SECRET, b"\xee" * 32))
    assert combine({0: one[0], 1: other[1]}, 2) not in (SECRET, b"\xee" * 32)
