"""The clinical measures against figures known by hand, at the ends of the scale, and without images."""

from __future__ import annotations

import numpy as np
import pytest

from dynammo_core.scoring.clinical import class_measures, mean_share, share


def test_intervals_are_wilsons() -> None:
    found = share([81, 0, 10, 0], [263, 10, 10, 0])
    # Newcombe (Statistics in Medicine 17, 1998), table I, method 3: 81 of 263 is 0.2553 to 0.3662.
    assert found.low[0] == pytest.approx(25.53, abs=0.005)
    assert found.high[0] == pytest.approx(36.62, abs=0.005)
    assert (found.low[1], found.high[2]) == pytest.approx((0, 100))
    assert found.high[1] == pytest.approx(100 - found.low[2]) == pytest.approx(27.75, abs=0.005)
    assert np.isnan([found.value[3], found.low[3], found.high[3]]).all()


def test_a_mean_of_shares_is_as_uncertain_as_they_are() -> None:
    one, four = (mean_share(share([80] * n + [0], [100] * n + [0])) for n in (1, 4))
    assert (float(one.low), float(one.high)) == pytest.approx((71.11, 86.66), abs=0.01)  # Wilson's own
    assert float(four.value) == pytest.approx(80)
    for of_one, of_four in ((one.low, four.low), (one.high, four.high)):
        assert float(of_four) - 80 == pytest.approx((float(of_one) - 80) / 2)  # a quarter of the variance
    assert np.isnan(float(mean_share(share([0], [0])).value))


def test_one_class_against_the_others() -> None:
    measures = class_measures(np.array([[8, 2, 0], [1, 9, 0], [0, 4, 6]]))
    assert measures.images.tolist() == [10, 10, 10]
    assert measures.sensitivity.value.tolist() == pytest.approx([80, 90, 60])
    assert measures.specificity.value.tolist() == pytest.approx([95, 70, 100])
    assert measures.precision.value.tolist() == pytest.approx([100 * 8 / 9, 60, 100])
    assert measures.f1.value.tolist() == pytest.approx([100 * 16 / 19, 72, 75])
    for kind in (measures.sensitivity, measures.specificity, measures.precision, measures.f1):
        assert (kind.low < kind.value + 1e-9).all() and (kind.value < kind.high + 1e-9).all()
