"""Factors travel short and rounded if the experiment says so; what is lost that way cannot be taken out again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import SITES, events, run_small, small_config

from dynammo_core.configuration.config import Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, RunError
from dynammo_core.wire.sums_form import SumsForm

SHORT: dict[str, Scalar] = {"federation.sums_rows": 3, "federation.sums_precision": "float32"}


def test_a_run_with_short_and_rounded_factors(tmp_path: Path) -> None:
    config = small_config("streaming_ridge", SHORT)
    run = run_small(config, tmp_path).path
    (step, *_) = [event for event in events(run, "step_finished") if event["stage"] == "sum"]
    others = 8 * (2 + 2 * 121)  # counts and products of two classes
    assert step["bytes_up"] <= SITES * (others + 4 * 3 * 120)
    assert step["bytes_up"] % 8 == (others + 4 * 3 * 120) % 8
    with pytest.raises(RunError, match=r"federation\.sums_rows left out a part"):
        Experiment(config).step(step["step"], 1)


def test_both_ends_declare_one_shape() -> None:
    experiment = Experiment(small_config("streaming_ridge", SHORT))
    (_, stage) = experiment.method.stages(0)
    model, name = experiment.build_model(0), "heads.classes.gram"
    classes = experiment.stream.seen(0)
    counts = [10 if label in classes else 0 for label in range(experiment.classes)]
    form = experiment.sums_form
    assert form == SumsForm(rows=3, precision=torch.float32)
    like = form.declared(model, stage, counts)[name]
    assert (like.shape, like.dtype) == ((3, 120), torch.float32)
    assert SumsForm().declared(model, stage, counts)[name].shape == (18, 120)
    assert SumsForm(thin=False).declared(model, stage, counts)[name].shape == (121 * 122 // 2,)


def test_what_would_be_rounded_twice_or_is_noised_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounded again by compression: int8"):
        small_config("ridge", {"federation.sums_precision": "float32", "federation.compression": "int8"})
    with pytest.raises(ConfigError, match="has no thin factor"):
        small_config("ridge", {"federation.sums_rows": 3, "privacy.mechanism": "example"})
