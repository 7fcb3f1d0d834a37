"""Masks and shares: they vanish in the sum, hide each term of it, and serve for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from dynammo_core.wire.secure_aggregation.masking import (
    KEY_BYTES,
    Context,
    SiteKeys,
    Vector,
    agree,
    keystream,
    mask,
    masked,
    unmasked,
)
from dynammo_core.wire.secure_aggregation.shamir import SHARE_BYTES, combine
from dynammo_core.wire.secure_aggregation.sharing import SEALED_BYTES, deal, opened

SITES = 5
THRESHOLD = 4
CONTEXT = Context("run-1", 7, bytes(range(16)))
KEYS = {site: SiteKeys.derive(bytes([site]) * KEY_BYTES, CONTEXT, site) for site in range(SITES)}
ROSTER = {site: keys.public for site, keys in KEYS.items()}
LENGTH = 40_000


def update(site: int) -> Vector:
    """What an update looks like in fixed point: normal numbers of a few bits, most of them small."""
    values = np.random.default_rng(site).normal(scale=0.05, size=LENGTH) * 20 * 2.0**30
    return np.rint(values).astype(np.int64).view(np.uint64)


UPDATES = {site: update(site) for site in range(SITES)}
MASKED = {site: masked(UPDATES[site], site, KEYS[site], ROSTER, CONTEXT) for site in range(SITES)}


def total(vectors: dict[int, Vector]) -> Vector:
    added = np.zeros(LENGTH, dtype=np.uint64)
    for vector in vectors.values():
        added += vector
    return added


@pytest.mark.parametrize("lost", [(), (0,), (2,), (4,), (0, 3)])
def test_the_sum_of_those_who_stayed_comes_out_exactly(lost: tuple[int, ...]) -> None:
    stayed = {site: vector for site, vector in MASKED.items() if site not in lost}
    own = [KEYS[site].own for site in stayed]
    keys = {site: KEYS[site].masking for site in lost}
    found = unmasked(total(stayed), own, keys, stayed, ROSTER, CONTEXT)
    np.testing.assert_array_equal(found, total({site: UPDATES[site] for site in stayed}))


def test_a_wrong_masking_key_is_found_out() -> None:
    stayed = {site: vector for site, vector in MASKED.items() if site}
    own = [KEYS[site].own for site in stayed]
    with pytest.raises(ValueError, match="site 0 do not reconstruct its key"):
        unmasked(total(stayed), own, {0: KEYS[1].masking}, stayed, ROSTER, CONTEXT)


# --- what the server can see of one site


def looks_uniform(vector: Vector) -> bool:
    """Chi-square of the bytes, 255 degrees of freedom: mean 255, standard deviation sqrt(510) = 22.6; five of them."""
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = vector.nbytes / 256
    return bool(abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * np.sqrt(510))


def correlates(vector: Vector, true: Vector) -> bool:
    """Of the numbers as fixed point, and of every bit with the sign; of independent ones within 5 / sqrt(N)."""
    values = true.view(np.int64).astype(np.float64)
    bits = ((vector[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(np.float64)
    seen = np.column_stack([vector.view(np.int64).astype(np.float64), bits])
    seen = seen[:, seen.std(axis=0) > 0]
    by_value = [abs(np.corrcoef(column, values)[0, 1]) for column in seen.T]
    by_sign = [abs(np.corrcoef(column, values < 0)[0, 1]) for column in seen.T]
    return max(*by_value, *by_sign) > 5 / np.sqrt(len(vector))


def without_own(site: int) -> Vector:
    return MASKED[site] - mask(KEYS[site].own, LENGTH)


def without_pairwise(site: int) -> Vector:
    """As if all others had dropped out and their keys been opened."""
    others = {other: keys.masking for other, keys in KEYS.items() if other != site}
    return unmasked(MASKED[site], [], others, [site], ROSTER, CONTEXT)


VIEWS: dict[str, Callable[[int], Vector]] = {
    "as it is sent": MASKED.__getitem__,
    "its own mask opened": without_own,
    "the masks with all others opened": without_pairwise,
}


@pytest.mark.parametrize("site", range(SITES))
@pytest.mark.parametrize("view", VIEWS)
def test_what_the_server_can_see_of_a_site_is_noise(site: int, view: str) -> None:
    seen = VIEWS[view](site)
    assert looks_uniform(seen)
    assert not correlates(seen, UPDATES[site])


def test_the_tests_for_noise_see_an_update_that_is_not_masked() -> None:
    assert not looks_uniform(UPDATES[0])
    assert correlates(UPDATES[0], UPDATES[0])
    half = UPDATES[0] + (mask(KEYS[0].own, LENGTH) >> np.uint64(24))  # a mask that is too small
    assert not looks_uniform(half)
    assert correlates(half, UPDATES[0])


def test_both_kinds_of_mask_together_would_unmask() -> None:
    """What a site must never open of one peer in one attempt."""
    both = without_pairwise(2) - mask(KEYS[2].own, LENGTH)
    np.testing.assert_array_equal(both, UPDATES[2])


def test_masks_of_no_two_sites_steps_runs_or_attempts_are_alike() -> None:
    contexts = [CONTEXT, Context("run-2", 7, CONTEXT.attempt), Context("run-1", 8, CONTEXT.attempt)]
    contexts.append(Context("run-1", 7, bytes(16)))
    seeds = [
        seed
        for context in contexts
        for site in range(3)
        for seed in vars(SiteKeys.derive(b"s" * KEY_BYTES, context, site)).values()
    ]
    assert len(set(seeds)) == len(seeds) == 4 * 3 * 4
    pairs = [
        context.derive(agree(KEYS[one].masking, ROSTER[other][KEY_BYTES:]), "pair", one, other)
        for context in contexts
        for one, other in combinations(range(3), 2)
    ]
    assert len(set(pairs)) == len(pairs)


def test_the_keystream_is_the_published_one() -> None:
    """RFC 8439, appendix A.1, test vector 1."""
    stream = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert keystream(bytes(32), 32).hex() == stream
    assert mask(bytes(32), 1)[0] == int.from_bytes(bytes.fromhex(stream)[:8], "little")


def test_a_public_key_that_agrees_with_everybody_is_refused() -> None:
    with pytest.raises(ValueError, match="shared"):
        agree(KEYS[0].masking, bytes(KEY_BYTES))


# --- shares


def test_what_is_dealt_opens_for_its_receiver_alone_and_gives_the_secrets_back() -> None:
    dealt = deal(2, KEYS[2], ROSTER, THRESHOLD, CONTEXT)
    assert set(dealt) == set(ROSTER)
    assert {len(sealed) for sealed in dealt.values()} == {SEALED_BYTES}
    pairs = {site: opened(site, KEYS[site], 2, ROSTER[2], dealt[site], CONTEXT) for site in ROSTER}
    assert {len(share) for pair in pairs.values() for share in pair} == {SHARE_BYTES}
    assert combine({site: own for site, (own, _) in pairs.items()}, THRESHOLD) == KEYS[2].own
    assert combine({site: key for site, (_, key) in pairs.items()}, THRESHOLD) == KEYS[2].masking
    with pytest.raises(ValueError, match="not the shares that site"):
        opened(1, KEYS[1], 2, ROSTER[2], dealt[0], CONTEXT)


@pytest.mark.parametrize("place", [0, 40, SEALED_BYTES - 1])
def test_a_changed_bit_is_found_out(place: int) -> None:
    sealed = bytearray(deal(2, KEYS[2], ROSTER, THRESHOLD, CONTEXT)[0])
    sealed[place] ^= 1
    with pytest.raises(ValueError, match="not the shares that site 2"):
        opened(0, KEYS[0], 2, ROSTER[2], bytes(sealed), CONTEXT)


def test_shares_of_another_attempt_do_not_open() -> None:
    other = Context(CONTEXT.run, CONTEXT.step, bytes(16))
    sealed = deal(2, KEYS[2], ROSTER, THRESHOLD, other)[0]
    with pytest.raises(ValueError, match="not the shares that site 2"):
        opened(0, KEYS[0], 2, ROSTER[2], sealed, CONTEXT)


def test_whoever_is_asked_again_deals_the_same_again() -> None:
    few = {site: ROSTER[site] for site in (0, 2, 4)}
    all_of_them = deal(2, KEYS[2], ROSTER, THRESHOLD, CONTEXT)
    assert deal(2, KEYS[2], few, THRESHOLD, CONTEXT) == {site: all_of_them[site] for site in few}
