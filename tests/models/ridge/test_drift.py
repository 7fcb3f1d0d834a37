"""Sums that are moved: nothing where nothing changes, exact where features change linearly, whoever holds the pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynammo_core.models.heads import OTHERS
from dynammo_core.models.ridge.drift import Drift, estimate_drift
from dynammo_core.models.ridge.gram import unpack
from dynammo_core.models.ridge.head import RidgeHead

DIM, ROWS = 6, (0, 1, 2)


def features(count: int, seed: int = 0) -> Tensor:
    """Correlated features whose scales and means differ."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    drawn = torch.randn(count, DIM, generator=generator, dtype=torch.float64)
    return drawn @ mixing * torch.logspace(-2, 2, DIM, dtype=torch.float64) + 3


def linear(old: Tensor, width: int = DIM, noise: float = 0.0) -> Tensor:
    """New features that are an affine function of old ones, and noise of that deviation."""
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randn(DIM, width, generator=generator, dtype=torch.float64)
    own = torch.randn(len(old), width, generator=torch.Generator().manual_seed(len(old)), dtype=torch.float64)
    return old @ matrix + torch.randn(width, generator=generator, dtype=torch.float64) + noise * own


def sums(images: Tensor, rows: tuple[int, ...] = ROWS) -> RidgeHead:
    """The sums of images that belong to the rows in turn."""
    head = RidgeHead(images.shape[1], rows)
    head.sample_weight.copy_(torch.linspace(0.5, 2, len(rows)))
    head.add(images.double(), torch.arange(len(images)) % 3)
    return head


def drift_of(old: Tensor, new: Tensor, sites: int = 1, *, alike: bool = True) -> Drift:
    """The drift that sites find which hold the pairs in turn."""
    pairs = torch.cat([old, new], dim=1)
    gram = sum(sums(pairs[site::sites], (OTHERS,)).gram / 0.5 for site in range(sites))
    assert isinstance(gram, Tensor)
    return estimate_drift(gram, old.shape[1], new.shape[1], alike=alike)


def close(found: Tensor, wanted: Tensor, within: float) -> None:
    assert float((found - wanted).norm() / wanted.norm()) < within


def test_sums_stay_where_features_stay() -> None:
    pairs, past = features(40), sums(features(50, seed=1))
    drift = drift_of(pairs, pairs)
    torch.testing.assert_close(drift.matrix, torch.eye(DIM + 1).double(), rtol=0, atol=0)
    assert not drift.residual.any()
    gram, products = drift.moved(past.gram, past.products)
    torch.testing.assert_close((gram, products), (past.gram, past.products), rtol=1e-15, atol=0)


def test_features_that_stay_beside_others_that_drift_are_left_alone() -> None:
    old = features(60)
    new = old.clone()
    new[:, :2] = linear(old)[:, :2]
    drift = drift_of(old, new)
    assert torch.equal(drift.matrix[2:], torch.eye(DIM + 1).double()[2:])
    assert not drift.residual[2:].any()


@pytest.mark.parametrize("width", [4, DIM, 9])
def test_a_linear_drift_is_followed_as_if_all_old_images_were_summed_anew(width: int) -> None:
    old, past = features(80), features(50, seed=1)
    drift = drift_of(old, linear(old, width), alike=width == DIM)
    gram, products = drift.moved(sums(past).gram, sums(past).products)
    anew = sums(linear(past, width))
    close(gram, anew.gram, 1e-4)
    close(products, anew.products, 1e-4)


def test_what_no_map_explains_is_added_as_variance() -> None:
    """Noise of a deviation of 5 in each new feature: the moved scatter has it, whatever the number of pairs."""
    past, noise = sums(features(4000, seed=1)), 5.0
    weight = float(past.gram[-1])
    for count in (14, 400):
        old = features(count, seed=2)
        drift = drift_of(old, linear(old, noise=noise), alike=False)
        found = float(drift.residual.diagonal().mean())
        assert 0.4 * noise**2 < found < 2.5 * noise**2
        with_it, without = (drift.moved(past.gram, past.products, residual=on)[0] for on in (True, False))
        added = unpack(with_it - without, DIM + 1)
        close(added[:-1, :-1], weight * drift.residual, 1e-6)
        assert not added[-1].any()


def test_pairs_give_the_same_drift_however_sites_hold_them() -> None:
    old = features(100)
    new = linear(old, noise=1)
    one = drift_of(old, new)
    for sites in (5, 20):
        split = drift_of(old, new, sites)
        close(split.matrix, one.matrix, 1e-6)
        close(split.residual, one.residual, 1e-6)


def test_fewer_pairs_than_features_move_what_they_show_and_no_more() -> None:
    """Two pairs decide no map: features stay as they are, but for the mean, and are trusted less."""
    old = features(2)
    change = 1 + torch.randn(2, DIM, generator=torch.Generator().manual_seed(1)).double()
    drift = drift_of(old, old + change)
    centred = old - old.mean(dim=0)
    assert float((centred @ (drift.matrix[:-1, :-1] - torch.eye(DIM)).T).norm()) < 0.02 * float(change.norm())
    assert drift.matrix.isfinite().all() and drift.residual.isfinite().all()
    assert bool(drift.residual.any())


@pytest.mark.parametrize("alike", [True, False])
def test_what_pairs_hardly_vary_in_does_not_carry_past_images_far_away(alike: bool) -> None:
    """A feature that is nearly off on all pairs, and on for past images: nothing shows what becomes of it."""
    old, past = features(30), features(400, seed=1)
    old[:, -1] = past[:, -1].mean() + 1e-4 * (old[:, -1] - old[:, -1].mean())
    drift = drift_of(old, linear(old, noise=5), alike=alike)
    centred = past - past.mean(dim=0)
    moved = centred @ drift.matrix[:-1, :-1].T - (centred if alike else 0)
    assert float(moved.std()) < 3 * float(linear(past).std())


def test_moving_twice_is_moving_by_both() -> None:
    """A chain: the sums move again with the next change, and so does what the first map left unexplained."""
    old, past = features(90), features(70, seed=1)
    first, second = linear(old, noise=0.5), linear(linear(old))
    one, two = drift_of(old, first), drift_of(first, second)
    moved = two.moved(*one.moved(sums(past).gram, sums(past).products))
    both = two.matrix @ one.matrix
    close(moved[1], sums(past).products @ both.T, 1e-12)
    left = two.matrix[:-1, :-1] @ one.residual @ two.matrix[:-1, :-1].T + two.residual
    whole = both @ unpack(sums(past).gram, DIM + 1) @ both.T
    whole[:-1, :-1] += sums(past).gram[-1] * left
    close(unpack(moved[0], DIM + 1), whole, 1e-12)


@pytest.mark.parametrize("width", [4, DIM, 9])
def test_what_is_taken_out_after_two_moves_was_never_in(width: int) -> None:
    """Drifts as they are kept; some images leave a class, and all of another."""
    old, past = features(90), features(70, seed=1)
    first, second = linear(old, width, noise=0.5), linear(old, width, noise=2).flip(1)
    drifts = [drift_of(old, first, alike=width == DIM), drift_of(first, second, alike=False)]
    labels = torch.arange(len(past)) % 3
    gone = (labels == 2) | (torch.arange(len(past)) % 7 == 0)
    taken, never = RidgeHead(DIM, ROWS), RidgeHead(DIM, ROWS)
    taken.add(past[gone], labels[gone])
    never.add(past[~gone], labels[~gone])
    whole = (taken.gram + never.gram, taken.products + never.products)
    part, rest = (-taken.gram, -taken.products), (never.gram, never.products)
    for drift in (Drift.kept(each.tensors()) for each in drifts):
        whole, part, rest = drift.moved(*whole), drift.moved(*part), drift.moved(*rest)
    close(whole[0] + part[0], rest[0], 1e-12)
    close(whole[1] + part[1], rest[1], 1e-12)


def test_a_drift_is_kept_to_the_precision_of_features() -> None:
    old = features(60)
    drift = drift_of(old, linear(old, noise=1))
    kept = Drift.kept(drift.tensors())
    close(kept.matrix, drift.matrix, 1e-7)
    close(kept.residual, drift.residual, 1e-7)
    assert torch.equal(Drift.kept(kept.tensors()).matrix, kept.matrix)


def test_a_class_projected_onto_the_row_space_of_its_own_images_moves_the_same() -> None:
    """A projection by class, as in DPCR (arXiv 2503.05423), leaves sums as they are: the images lie in that space."""
    old, few = features(80), features(4, seed=1)
    drift = drift_of(old, linear(old, noise=1))
    space = torch.linalg.svd(few, full_matrices=False).Vh
    projected = few @ space.T @ space
    close(
        drift.moved(sums(projected).gram, sums(projected).products)[0],
        drift.moved(sums(few).gram, sums(few).products)[0],
        1e-9,
    )
