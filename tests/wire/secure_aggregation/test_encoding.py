"""Updates as integers: their sum gives the class-aware mean, and what would not add up is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from small_runs import small_config, step_of

from dynammo_core.aggregation.class_aware import Update, class_aware_mean
from dynammo_core.experiment import Experiment
from dynammo_core.models.heads import head_rows, summed_names
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Step
from dynammo_core.support.errors import ProtocolError
from dynammo_core.support.seeding import seeded_generator
from dynammo_core.wire.protocol import NUMBERS, Report, names_up
from dynammo_core.wire.secure_aggregation.encoding import SCALE, Encoding

CLASSES = 10
# Classes 0 to 3 are those of the two tasks. Nobody holds class 3, one site alone class 2, and one is 50 times another.
COUNTS = ([3, 2, 0, 0], [0, 100, 7, 0], [1, 1, 0, 0])
STAGES = (("dynammo", "adapt"), ("dynammo", "recalibrate"), ("dynammo", "balance"), ("lucir", "train"))
SUMS = (("ridge", "sum"), ("streaming_ridge", "sum"))


@cache
def setting(method: str, stage: str) -> tuple[Experiment, Step, IncrementalModel]:
    experiment = Experiment(small_config(method))
    return experiment, step_of(experiment, 1, stage), experiment.build_model(1)


def report(method: str, stage: str, site: int, counts: Sequence[int]) -> Report:
    _, step, model = setting(method, stage)
    generator, state = seeded_generator(method, stage, site), model.state_dict()
    weights = {}
    for name in names_up(model, step.stage):
        drawn = torch.randn(state[name].shape, generator=generator).to(state[name].dtype)
        weights[name] = drawn.square() if name.endswith("running_var") else drawn
    numbers = {"class_counts": [*counts, *[0] * (CLASSES - 4)], "loss": 0.5 + site, "seconds": 1.0}
    return Report(
        False, weights, {name: value for name, value in numbers.items() if name in NUMBERS[step.stage.action]}
    )


def encoding(method: str, stage: str, sites: int = 3) -> Encoding:
    _, step, model = setting(method, stage)
    return Encoding(step.stage, model, CLASSES, sites)


@pytest.mark.parametrize(("method", "stage"), [*STAGES, *SUMS])
def test_the_sum_gives_the_class_aware_mean(method: str, stage: str) -> None:
    """Each site rounds by 2^-31 at most, weighted or not; three of them, and float32 that holds the mean: 1e-6."""
    reports = [report(method, stage, site, counts) for site, counts in enumerate(COUNTS)]
    _, _, model = setting(method, stage)
    state, added = model.state_dict(), encoding(method, stage)
    vectors = [added.encode(one) for one in [*reports, Report(abstained=True)]]
    assert all(vector.dtype == np.uint64 and vector.shape == (len(added),) for vector in vectors)
    total = added.decode(np.sum(vectors, axis=0, dtype=np.uint64))
    assert total.class_counts == [4, 103, 7, 0, *[0] * 6]
    assert total.samples == 114
    updates = [Update(one.weights, one.class_counts) for one in reports]
    wanted = class_aware_mean(updates, head_rows(model), state, summed_names(model))
    found = added.mean(total, state)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)


def test_the_loss_is_that_of_a_sample() -> None:
    reports = [report("dynammo", "adapt", site, counts) for site, counts in enumerate(COUNTS)]
    added = encoding("dynammo", "adapt")
    total = added.decode(np.sum([added.encode(one) for one in reports], axis=0, dtype=np.uint64))
    assert total.loss == pytest.approx((5 * 0.5 + 107 * 1.5 + 2 * 2.5) / 114, abs=1e-8)
    nobody = added.decode(added.encode(Report(abstained=True)))
    assert (nobody.samples, nobody.loss) == (0, None)


def test_a_test_is_counts_alone() -> None:
    _, step, model = setting("dynammo", "evaluate")
    added = Encoding(step.stage, model, CLASSES, 2)
    # 10 classes, 100 pairs of them, 15 bins of confidence with three numbers, 128 of scores with two.
    lengths = {"class_counts": 10, "confusion": 100, "calibration": 45, "open_set": 256}
    counts = {name: list(range(length)) for name, length in lengths.items()}
    vector = added.encode(Report(False, {}, {**counts, "seconds": 1.0}))
    assert len(vector) == len(added) == 10 + 100 + 45 + 256
    total = added.decode(vector + vector)
    assert total.counts == {name: [2 * count for count in own] for name, own in counts.items()}
    assert total.sums == {}


@pytest.mark.parametrize("sites", [3, 1000])
def test_what_could_leave_the_ring_is_refused_and_what_cannot_is_not(sites: int) -> None:
    """All sites together stay below 2^62 of 2^64, so that the sum of the largest is still told from a negative one."""
    sent = report("ridge", "sum", 0, COUNTS[0])
    added, name = encoding("ridge", "sum", sites), "heads.classes.gram"
    largest = 2.0**62 / sites / SCALE
    for sign in (1, -1):
        fits = torch.full_like(sent.weights[name], sign * 0.999 * largest)
        vector = added.encode(Report(False, {**sent.weights, name: fits}, sent.numbers))
        total = added.decode(vector * np.uint64(sites))
        torch.testing.assert_close(total.sums[name], sites * fits, rtol=1e-9, atol=0)
        over = torch.full_like(sent.weights[name], sign * 1.001 * largest)
        with pytest.raises(ProtocolError, match="gram' is too large for secure aggregation"):
            added.encode(Report(False, {**sent.weights, name: over}, sent.numbers))


def test_a_variance_never_comes_out_negative() -> None:
    """E[var + mean^2] - mean^2 cancels: of constant maps with large means, rounding decides its sign."""
    added, (_, _, model) = encoding("dynammo", "recalibrate"), setting("dynammo", "recalibrate")
    one = report("dynammo", "recalibrate", 0, COUNTS[0])
    constant = {
        name: torch.full_like(tensor, 0.0 if name.endswith("var") else 300.0 + 1 / 3)
        for name, tensor in one.weights.items()
    }
    merged = added.mean(added.decode(added.encode(Report(False, constant, one.numbers))), model.state_dict())
    variances = torch.cat([tensor for name, tensor in merged.items() if name.endswith("var")])
    assert float(variances.min()) >= 0
    assert float(variances.max()) < 1e-5
