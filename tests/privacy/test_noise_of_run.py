"""The noise of a run keeps its budget, be it computed or set."""

from __future__ import annotations

import pytest
from small_runs import small_config

from dynammo_core.experiment import Experiment
from dynammo_core.privacy.accounting import compose
from dynammo_core.privacy.plan import client_charges
from dynammo_core.support.errors import ConfigError

CLIENT = {"method.adapters": False, "privacy.mechanism": "client", "privacy.epsilon": 2.0}


def test_the_server_does_not_begin_a_run_whose_noise_is_too_small_for_its_budget() -> None:
    least = Experiment(small_config(overrides=CLIENT)).noise_multiplier
    experiment = Experiment(small_config(overrides={**CLIENT, "privacy.noise_multiplier": least}))
    assert experiment.noise_multiplier == least
    assert compose(client_charges(experiment.steps, least), 1e-5) <= 2.0
    smaller = Experiment(small_config(overrides={**CLIENT, "privacy.noise_multiplier": 0.9 * least}))
    with pytest.raises(ConfigError, match=r"costs an epsilon of 2\.\d+ over the whole run, .* privacy\.epsilon is 2"):
        smaller.check()
