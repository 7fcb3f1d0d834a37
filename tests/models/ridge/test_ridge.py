from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dynammo_core.models.heads import head_rows, summed_names
from dynammo_core.models.ridge.gram import pack, unpack
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.models.ridge.solution import effective_samples
from dynammo_core.models.ridge.spectrum import CANDIDATES

ROWS = (4, 7, 2)
DIM = 6


def data(seed: int, samples: int = 60) -> tuple[Tensor, Tensor]:
    """Features of very different scales whose classes lie apart, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(ROWS), (samples,), generator=generator)
    rows[:3] = torch.arange(3)
    centres = torch.randn(len(ROWS), DIM, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(samples, DIM, generator=generator)
    return (centres[rows] + noise) * torch.logspace(-2, 2, DIM) + 5, torch.tensor(ROWS)[rows]


def solved(parts: list[tuple[Tensor, Tensor]], regulariser: float | None = 0.1) -> RidgeHead:
    """One head for each part, as sites have them, their sums added up."""
    total = RidgeHead(DIM, ROWS)
    for features, labels in parts:
        site = RidgeHead(DIM, ROWS)
        site.add(features, labels)
        for name in RidgeHead.summed_tensors:
            total.get_buffer(name).add_(site.get_buffer(name))
    total.solve(regulariser)
    return total


@pytest.mark.parametrize("regulariser", [0.01, 1.0])
def test_the_solution_is_that_of_scikit_learn(regulariser: float) -> None:
    features, labels = data(1)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    one_hot = (labels.unsqueeze(1) == torch.tensor(ROWS)).double().numpy()
    # scikit-learn minimises |y - Xw|^2 + a |w|^2; ours has the mean of the squares, so a = n * regulariser.
    expected = Ridge(alpha=len(labels) * regulariser).fit(scaled, one_hot).predict(scaled)
    given_ = solved([(features, labels)], regulariser)(features)
    torch.testing.assert_close(given_.double(), torch.tensor(expected), atol=2e-4, rtol=0)


@given(cuts=st.lists(st.integers(1, 59), max_size=4, unique=True).map(sorted))
def test_sites_give_what_pooling_gives_whatever_the_split(cuts: list[int]) -> None:
    features, labels = data(2)
    edges = [0, *cuts, len(labels)]
    parts = [(features[a:b], labels[a:b]) for a, b in pairwise(edges)]
    pooled, split = solved([(features, labels)]), solved(parts)
    torch.testing.assert_close(split.gram, pooled.gram, atol=0, rtol=1e-12)
    torch.testing.assert_close(split.weight.double(), pooled.weight.double(), atol=1e-6, rtol=1e-5)


def test_a_record_is_taken_out_exactly() -> None:
    features, labels = data(3)
    head, without = RidgeHead(DIM, ROWS), RidgeHead(DIM, ROWS)
    head.add(features, labels)
    head.add(features[:1], labels[:1], torch.tensor([-1.0]))
    without.add(features[1:], labels[1:])
    for name in RidgeHead.summed_tensors:
        torch.testing.assert_close(head.get_buffer(name), without.get_buffer(name), atol=1e-9, rtol=1e-12)
    assert head.counts.sum() == len(labels) - 1


def test_a_site_that_leaves_is_taken_out_exactly() -> None:
    sites = [data(seed, samples=40) for seed in (11, 12, 13)]
    head, without = RidgeHead(DIM, ROWS), RidgeHead(DIM, ROWS)
    for features, labels in sites:
        head.add(features, labels)
    head.add(*sites[1], -torch.ones(40))
    for features, labels in (sites[0], sites[2]):
        without.add(features, labels)
    for solved_ in (head, without):
        solved_.solve()
    torch.testing.assert_close(head.weight, without.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head.bias, without.bias, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(head.weight, solved(sites, None).weight, rtol=1e-3)


def test_both_solutions_are_the_same() -> None:
    """By eigenvalues, where the regulariser is to be found, and by Cholesky's factor, where it is known."""
    head = solved([data(7)], None)
    found = head.weight.clone()
    head.solve(head.solve())
    torch.testing.assert_close(head.weight, found, atol=1e-7, rtol=1e-5)


def test_a_singular_matrix_is_solved_with_jitter() -> None:
    # Every feature twice: half of the eigenvalues are 0, and 1e-30 cannot lift them above what rounding leaves of them.
    features, labels = data(8)
    head = RidgeHead(2 * DIM, ROWS)
    head.add(torch.cat([features, features], dim=1), labels)
    head.solve(1e-30)
    once = solved([(features, labels)], 1e-12)
    torch.testing.assert_close(head(torch.cat([features, features], dim=1)), once(features), atol=1e-3, rtol=0)


def test_weights_balance_classes() -> None:
    """A class counted twice as heavily is a class with every image twice."""
    features, labels = data(4)
    weighted = RidgeHead(DIM, ROWS)
    weighted.sample_weight[1] = 2
    weighted.add(features, labels)
    weighted.solve(0.1)
    double = labels == ROWS[1]
    twice = solved([(features, labels), (features[double], labels[double])])
    torch.testing.assert_close(weighted.weight, twice.weight)
    torch.testing.assert_close(weighted.bias, twice.bias)


def test_the_regulariser_is_the_one_of_least_generalised_cross_validation_error() -> None:
    features, labels = data(5, samples=40)
    chosen = solved([(features, labels)], None)
    regulariser = chosen.solve(None)
    scaled = torch.tensor(StandardScaler().fit_transform(features.double().numpy()))
    one_hot = (labels.unsqueeze(1) == torch.tensor(ROWS)).double()
    errors = []
    for candidate in CANDIDATES:
        # The hat matrix, written out: the bias, and X (X^T X + n r)^-1 X^T on centred features.
        gram = scaled.T @ scaled + len(labels) * candidate * torch.eye(DIM)
        hat = torch.full((40, 40), 1 / 40, dtype=torch.float64) + scaled @ torch.linalg.solve(gram, scaled.T)
        residual = one_hot - hat @ one_hot
        errors.append(float(residual.square().sum() / (1 - hat.trace() / len(labels)) ** 2))
    assert regulariser == pytest.approx(float(CANDIDATES[errors.index(min(errors))]))
    assert float(CANDIDATES[0]) < regulariser < float(CANDIDATES[-1])


def test_heavy_samples_count_for_fewer() -> None:
    head = RidgeHead(DIM, ROWS)
    head.counts.copy_(torch.tensor([10.0, 10.0, 10.0]))
    assert effective_samples(head.counts, head.sample_weight) == pytest.approx(30)
    head.sample_weight.copy_(torch.tensor([3.0, 1.0, 1.0]))
    assert effective_samples(head.counts, head.sample_weight) == pytest.approx(
        50**2 / 110
    )  # (30 + 10 + 10)^2 / (90 + 10 + 10)


def test_by_dimension_the_regulariser_is_features_over_effective_samples() -> None:
    features, labels = data(5, samples=40)
    features[:, 2] = 3.0  # says nothing, and does not count
    head = RidgeHead(DIM, ROWS)
    head.sample_weight[1] = 4
    head.add(features, labels)
    expected = (DIM - 1) / effective_samples(head.counts, head.sample_weight)
    assert head.solve("dimension") == pytest.approx(expected)
    by_rule = head.weight.clone()
    head.solve(expected)
    assert torch.equal(head.weight, by_rule)


def test_a_constant_feature_says_nothing_and_breaks_nothing() -> None:
    features, labels = data(6)
    features[:, 2] = 3.0
    head = solved([(features, labels)], None)
    assert head.weight.isfinite().all()
    assert torch.equal(head.weight[:, 2], torch.zeros(len(ROWS)))


def test_what_is_summed_and_what_belongs_to_rows() -> None:
    model = torch.nn.ModuleDict({"classes": RidgeHead(DIM, ROWS)})
    assert summed_names(model) == {"classes.gram", "classes.products", "classes.counts"}
    assert head_rows(model) == dict.fromkeys(("classes.weight", "classes.bias", "classes.sample_weight"), ROWS)


# --- with noise


BOUND = 2.0


def sums_of(features: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> RidgeHead:
    head = RidgeHead(features.shape[1], (0, 1, 2))
    if weights is not None:
        head.sample_weight.copy_(weights)
    head.add(features, labels)
    return head


def test_noise_on_sums_hides_one_image() -> None:
    """One image more, as long as may be: what it changes over the noise's deviation has a norm of 1 at most.

    The noise of each part is recorded in units of the multiplier, by a source that draws none.
    """
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(20, 5, generator=generator), dim=1) * BOUND
    labels = torch.arange(20) % 3
    weights = torch.tensor([0.1, 1.0, 0.3], dtype=torch.float64)
    for kind in (torch.ones(1, 5), torch.eye(5)[:1], torch.randn(1, 5, generator=generator)):
        for label in range(3):
            image = torch.nn.functional.normalize(kind, dim=1) * BOUND
            counts, deviations = {0: 7, 1: 7, 2: 6}, []

            def silent(shape: tuple[int, ...], sensitivity: float, found: list[float] = deviations) -> Tensor:
                found.append(sensitivity)
                return torch.zeros(shape, dtype=torch.float64)

            one = sums_of(features, labels, weights=weights)
            more = sums_of(torch.cat([features, image]), torch.cat([labels, torch.tensor([label])]), weights=weights)
            for head in (one, more):
                head.blur(counts, BOUND, silent)
            triangle, rows = deviations[:2]
            size = 6
            gram = pack((unpack(more.gram, size) - unpack(one.gram, size))[:-1, :-1]).norm() / triangle
            products = (more.products - one.products)[:, :-1].norm() / rows
            assert float(gram.square() + products.square()) <= 1 + 1e-9
            assert torch.equal(more.counts, one.counts)  # the census's, whatever the images
            assert torch.equal(more.products[:, -1], one.products[:, -1])
            assert torch.equal(unpack(more.gram, size)[-1, :-1], more.products[:, :-1].sum(dim=0))
    heavy = sums_of(features[:0], labels[:0], weights=weights)
    heavy.blur(counts, BOUND, silent)
    # The bound is reached by an image along an axis, of a class that weighs 1: 1/10 + 9/10 of what may be changed.
    assert deviations[-2:] == pytest.approx([BOUND**2 * math.sqrt(10), BOUND * math.sqrt(10 / 9)])


def test_noised_sums_are_solved_soundly_and_without_noise_classify_as_well() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(300) % 3
    features = torch.randn(300, 5, generator=generator) + 3 * torch.eye(5)[labels]
    head = sums_of(features, labels)
    head.solve_noised()
    assert float((head(features).argmax(dim=1) == labels).double().mean()) > 0.9
    # Noise so large that the covariance has negative eigenvalues: the answer stays finite.
    noisy = sums_of(features, labels)

    def draw(shape: tuple[int, ...], sensitivity: float) -> Tensor:
        return 5 * sensitivity * torch.randn(shape, generator=generator, dtype=torch.float64)

    noisy.blur({0: 100, 1: 100, 2: 100}, 5.0, draw)
    covariance = unpack(noisy.gram, 6)[:-1, :-1]
    assert float(torch.linalg.eigvalsh(covariance).min()) < 0
    assert noisy.solve_noised() > 0
    assert bool(torch.isfinite(noisy.weight).all() and torch.isfinite(noisy.bias).all())


def test_rows_of_classes_that_no_image_can_have_stay_without_noise() -> None:
    head = sums_of(torch.ones(4, 5), torch.tensor([0, 0, 2, 2]))
    head.blur({0: 3, 2: 1}, 3.0, lambda shape, sensitivity: torch.ones(shape, dtype=torch.float64))
    assert head.products[1].tolist() == [0.0] * 6
    assert head.products[:, :-1].sum(dim=1).tolist() == [(2 + 1) * 5, 0, (2 + 1) * 5]
    assert head.counts.tolist() == head.products[:, -1].tolist() == [3, 0, 1]


def test_towards_other_weights_the_solution_is_these_plus_that_of_what_they_leave() -> None:
    features, labels = data(9)
    features[:, 2] = 3.0  # says nothing, so that its weight stays
    scaler = StandardScaler().fit(features.double().numpy())
    scaled = torch.tensor(scaler.transform(features.double().numpy()))
    one_hot = (labels.unsqueeze(1) == torch.tensor(ROWS)).double()
    head = solved([(features, labels)])
    earlier = torch.randn(len(ROWS), DIM, generator=torch.Generator().manual_seed(1)) / features.std(dim=0).clamp_min(1)
    earlier[2] = 0  # a new class
    head.solve(0.1, towards=earlier.double())
    start = earlier.double() * torch.tensor(scaler.var_**0.5)
    rest = Ridge(alpha=len(labels) * 0.1).fit(scaled.numpy(), (one_hot - scaled @ start.T).numpy())
    expected = torch.tensor(rest.predict(scaled.numpy())) + scaled @ start.T
    torch.testing.assert_close(head(features).double(), expected, atol=2e-4, rtol=0)
    assert torch.equal(head.weight[:, 2], earlier[:, 2])


def test_towards_its_own_solution_a_head_stays_there_and_much_shrinking_keeps_others() -> None:
    features, labels = data(10)
    head = solved([(features, labels)], 1e-12)
    exact = head.weight.clone()
    head.solve(10.0, towards=exact.double())
    torch.testing.assert_close(head.weight, exact, atol=1e-7, rtol=1e-4)
    other = torch.randn(len(ROWS), DIM, generator=torch.Generator().manual_seed(2))
    head.solve(1e9, towards=other.double())
    torch.testing.assert_close(head.weight, other, atol=1e-6, rtol=1e-4)


def test_what_few_exemplars_cannot_tell_the_weights_before_still_know() -> None:
    """Two classes by many samples, then two more beside two exemplars of each of the first."""
    generator = torch.Generator().manual_seed(3)
    centres = 0.4 * torch.randn(4, 40, generator=generator)

    def drawn(each: dict[int, int]) -> tuple[Tensor, Tensor]:
        labels = torch.cat([torch.full((count,), label) for label, count in each.items()])
        return centres[labels] + torch.randn(len(labels), 40, generator=generator), labels

    many, few, tests = drawn({0: 400, 1: 400}), drawn({0: 2, 1: 2, 2: 400, 3: 400}), drawn({0: 400, 1: 400})
    first = RidgeHead(40, (0, 1))
    first.add(*many)
    first.solve("dimension")
    recalls = []
    kept = torch.zeros(4, 40, dtype=torch.float64)
    kept[:2] = first.weight
    for towards in (None, kept):
        head = RidgeHead(40, (0, 1, 2, 3))
        head.sample_weight[:2] = 200
        head.add(*few)
        head.solve("dimension", towards=towards)
        recalls.append(float((head(tests[0]).argmax(dim=1) == tests[1]).double().mean()))
    zero, before = recalls
    assert before > zero + 0.1


def test_deviations_are_those_of_the_weighed_samples() -> None:
    features, labels = data(11)
    features[:, 2] = 3.0
    head = RidgeHead(DIM, ROWS)
    head.sample_weight[1] = 2
    head.add(features, labels)
    twice = torch.cat([features, features[labels == ROWS[1]]]).double()
    torch.testing.assert_close(head.deviations(), twice.std(dim=0, correction=0), atol=1e-6, rtol=1e-9)
