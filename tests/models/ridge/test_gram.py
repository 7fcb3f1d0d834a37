"""A Gram matrix comes back as it was from its triangle and from its thin factor, which says no more than it does."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from dynammo_core.models.ridge.gram import factor_of, pack, shortened, thin_factor, travelling_shape, unpack, upper
from dynammo_core.models.ridge.head import RidgeHead

ROWS, DIM = (4, 7, 2), 30


def test_half_of_a_symmetric_matrix_travels() -> None:
    for size in (1, 5, 300):
        matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(size))
        matrix = matrix + matrix.T
        triangle = pack(matrix)
        assert triangle.shape == (size * (size + 1) // 2,)
        assert torch.equal(unpack(triangle, size), matrix)
        assert torch.equal(upper(triangle, size), matrix.triu())


def test_a_factor_travels_where_it_is_shorter() -> None:
    assert travelling_shape([5, 0, 3], 100) == (6, 100)
    assert travelling_shape([1, 1, 0], 100) == (0, 100)
    assert travelling_shape([30, 30], 100) == (101 * 102 // 2,)
    assert travelling_shape([30, 30], 100, most=10) == (10, 100)


def images(count: int) -> tuple[Tensor, Tensor]:
    """Features in units that are millions apart, one of them constant, and their labels."""
    generator = torch.Generator().manual_seed(count)
    features = torch.relu(torch.randn(count, DIM, generator=generator)) * torch.logspace(-3, 3, DIM)
    features[:, 3] = 7.0
    return features, torch.tensor(ROWS)[torch.randint(3, (count,), generator=generator)]


def heads(count: int) -> tuple[RidgeHead, RidgeHead, Tensor | None]:
    """Two heads with the sums of the same images: whole, and with the Gram matrix as its factor, if that travels."""
    features, labels = images(count)
    whole, thin = RidgeHead(DIM, ROWS), RidgeHead(DIM, ROWS)
    for head in (whole, thin):
        head.sample_weight.copy_(torch.tensor([0.3, 1.0, 2.0]))
    whole.add(features, labels)
    return whole, thin, thin.add_thinly(zip(features.split(7), labels.split(7), strict=True))


def same(triangle: Tensor, wanted: Tensor, within: float) -> None:
    """Each number, relative to the two features that it is of."""
    lengths = unpack(wanted, DIM + 1).diagonal().abs().clamp_min(1e-12).sqrt()
    error = unpack(triangle - wanted, DIM + 1).abs() / torch.outer(lengths, lengths)
    assert float(error.max()) < within


@pytest.mark.parametrize("count", [1, 2, 10, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_factor_loses_nothing_even_when_it_is_taken_out_again(count: int, sign: int) -> None:
    whole, thin, factor = heads(count)
    assert factor is not None
    assert torch.equal(whole.products, thin.products) and torch.equal(whole.counts, thin.counts)
    found = thin.whole({"gram": factor, "products": sign * thin.products, "counts": sign * thin.counts})
    same(found["gram"], sign * whole.gram, 1e-13)


def test_a_factor_does_not_depend_on_the_order_of_the_images() -> None:
    features, labels = images(10)
    other = RidgeHead(DIM, ROWS)
    other.sample_weight.copy_(torch.tensor([0.3, 1.0, 2.0]))
    factor, turned = heads(10)[2], other.add_thinly([(features.flip(0), labels.flip(0))])
    assert factor is not None and turned is not None
    assert torch.equal(factor, turned)


def test_many_images_are_added_whole_bit_for_bit() -> None:
    whole, thin, factor = heads(60)
    assert factor is None
    same(thin.gram, whole.gram, 1e-14)
    for name in ("products", "counts"):
        torch.testing.assert_close(thin.get_buffer(name), whole.get_buffer(name))


def test_a_factor_says_nothing_of_single_images() -> None:
    """Other images with the same sums, each a mixture of several, have the same factor."""
    features = images(9)[0].double()
    generator = torch.Generator().manual_seed(1)
    axes, turn = torch.linalg.qr(torch.randn(2, 9, 9, generator=generator, dtype=torch.float64)).Q
    axes = torch.linalg.qr(torch.cat([torch.ones(9, 1).double(), axes[:, :8]], dim=1)).Q
    turn = torch.block_diag(torch.ones(1, 1).double(), torch.linalg.qr(turn[:8, :8]).Q)  # the mean stays where it is
    others = axes @ turn @ axes.T @ features
    assert float((others - features).abs().max()) > 1
    one, other = (
        thin_factor(each, torch.zeros(9, dtype=torch.int64), torch.ones(9, dtype=torch.float64), 8)
        for each in (features, others)
    )
    lengths = one.norm(dim=0).clamp_min(1e-3)  # that of the constant feature is rounding
    torch.testing.assert_close(other / lengths, one / lengths, atol=1e-9, rtol=0)


def test_a_short_factor_keeps_most_and_the_variance_of_each_feature_and_is_the_same_from_the_matrix() -> None:
    whole, thin, factor = heads(16)
    assert factor is not None
    short, again = shortened(factor, 5), factor_of(whole.gram, whole.products, 5)
    assert short.shape == (5, DIM)
    lengths = factor.norm(dim=0)
    varies = lengths > 1e-9
    units = torch.outer(lengths, lengths).clamp_min(1e-18)
    kept, lost = short[:-1].T @ short[:-1], short[-1].square()
    torch.testing.assert_close(kept / units, again[:-1].T @ again[:-1] / units, atol=1e-9, rtol=0)
    assert 0.5 < float((kept.diagonal() / lengths.square())[varies].mean()) < 1
    found = unpack(thin.whole({"gram": short, "products": thin.products, "counts": thin.counts})["gram"], DIM + 1)
    torch.testing.assert_close(found.diagonal(), unpack(whole.gram, DIM + 1).diagonal())
    off = (found - unpack(whole.gram, DIM + 1))[:-1, :-1] - (kept + lost.diag() - factor.T @ factor)
    assert float((off / units)[varies][:, varies].abs().max()) < 1e-9
    assert torch.equal(shortened(factor, 13), factor)
    torch.testing.assert_close(shortened(factor, 1), lengths.unsqueeze(0))


def test_more_rows_lose_no_more_on_real_digits() -> None:
    """Ten sites send all rows, or ever fewer; without the last row, 40 of at most 50 would lose 43 points."""
    pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    random = torch.Generator().manual_seed(0)
    features = torch.relu(pixels / 16 @ torch.randn(64, 500, generator=random, dtype=torch.float64))
    accuracies = []
    for rows in (60, 40, 20, 8):
        total = RidgeHead(500, tuple(range(10)))
        for site in range(10):
            head = RidgeHead(500, total.rows)
            factor = head.add_thinly([(features[site:600:10], digits[site:600:10])])
            assert factor is not None
            sums = head.whole({"gram": shortened(factor, rows), "products": head.products, "counts": head.counts})
            for name, tensor in sums.items():
                total.get_buffer(name).add_(tensor)
        total.solve()
        right = total(features[600:].float()).argmax(dim=1) == digits[600:]
        accuracies.append(float(right.double().mean()))
    assert accuracies[0] > 0.92
    for more, fewer in pairwise(accuracies):
        assert more - 0.02 < fewer < more + 0.01
