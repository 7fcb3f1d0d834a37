"""What a site takes part in at all: by its own file, whatever is asked and whoever approved it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hospitals import deployed
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from small_runs import small_config

from client.consent.policy import (
    POLICY_TEMPLATE,
    WEEKDAYS,
    Policy,
    load_policy,
    promised_epsilon,
    refuse_when_closed,
    violations,
)
from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import ConfigError, PolicyError

CONFIG = deployed(["alpha", "beta"], ["a", "b", "c", "d"])
"""Replay: two tasks, each with two rounds of training."""


@pytest.mark.parametrize(
    ("limits", "sentences"),
    [
        ({}, []),
        ({"methods": ["replay", "dynammo"]}, []),
        ({"methods": ["joint"]}, ["the method replay is not among those allowed"]),
        ({"backbones": ["small_cnn"]}, []),
        ({"backbones": ["a" * 64]}, ["the backbone small_cnn is not among those allowed"]),
        ({"classes": ["a", "b", "c", "d", "e"]}, []),
        ({"classes": ["a", "d"]}, ["the classes b, c are not among those allowed"]),
        ({"most_tasks": 2, "most_rounds": 4}, []),
        ({"most_tasks": 1, "most_rounds": 3}, ["2 tasks are more than 1", "4 rounds of training are more than 3"]),
        ({"most_epsilon": 8.0}, ["no differential privacy, and epsilon 8 is required"]),
    ],
)
def test_each_limit_is_held(limits: dict[str, Any], sentences: list[str]) -> None:
    assert violations(Policy.model_validate(limits), CONFIG) == sentences


def test_an_experiment_that_names_no_classes_is_forbidden() -> None:
    assert violations(Policy(), small_config()) == ["it names no classes, as every experiment among hospitals does"]


class Private(BaseModel):
    """A configuration with a section `privacy`, whatever is in it."""

    privacy: dict[str, Any] | None


@pytest.mark.parametrize(
    ("section", "epsilon"),
    [
        ({"mechanism": "dp_sgd", "epsilon": 4.0, "delta": 1e-5, "noise": 0}, 4.0),
        ({"sites": {"epsilon": 2}, "target_epsilon": 3.0}, 3.0),
        ({"epsilon": 4.0, "mechanism": "none"}, float("inf")),
        ({"epsilon": 4.0, "enabled": False}, float("inf")),
        ({"epsilon": True}, float("inf")),
        ({"epsilon": None}, float("inf")),
        (None, float("inf")),
    ],
)
def test_an_epsilon_is_found_where_it_is_promised(section: dict[str, Any] | None, epsilon: float) -> None:
    assert promised_epsilon(Private(privacy=section)) == epsilon  # type: ignore[arg-type]


def test_an_epsilon_that_is_no_number_is_not_small_enough() -> None:
    class WithPrivacy(Config[Any]):
        privacy: dict[str, Any]

    fields = dict(CONFIG) | {"privacy": {"epsilon": float("nan")}}
    assert violations(Policy(most_epsilon=8.0), WithPrivacy.model_construct(**fields)) == [
        "no differential privacy, and epsilon 8 is required"
    ]


MONDAY = datetime(2026, 1, 5)


def is_open(policy: Policy, day: int, time: str) -> bool:
    try:
        refuse_when_closed(policy, MONDAY.replace(day=5 + day, hour=int(time[:2]), minute=int(time[3:])))
    except PolicyError:
        return False
    return True


def test_a_night_counts_as_the_day_on_which_it_began() -> None:
    nights = Policy(weekdays=("mon", "fri"), hours="20:00-06:00")
    told = {
        (0, "05:59"): False,  # still Sunday's night
        (0, "19:59"): False,
        (0, "20:00"): True,
        (1, "05:59"): True,
        (1, "06:00"): False,
        (1, "20:00"): False,
        (4, "23:59"): True,
        (5, "00:00"): True,
        (5, "21:00"): False,
    }
    assert {key: is_open(nights, *key) for key in told} == told
    days = Policy(hours="08:00-17:00")
    assert [is_open(days, 6, time) for time in ("07:59", "08:00", "16:59", "17:00")] == [False, True, True, False]
    assert not is_open(Policy(weekdays=("tue",)), 0, "12:00")
    with pytest.raises(PolicyError, match=r"it is mon 12:00 here\. Accepted: tue, wed 20:00-06:00"):
        refuse_when_closed(Policy(weekdays=("tue", "wed"), hours="20:00-06:00"), MONDAY.replace(hour=12))


@given(st.integers(0, 6), st.times(), st.sampled_from([None, "00:00-00:00", "07:30-07:30"]))
def test_without_limits_it_is_always_open(day: int, time: Any, hours: str | None) -> None:
    assert is_open(Policy(hours=hours, weekdays=WEEKDAYS), day, f"{time:%H:%M}")  # type: ignore[arg-type]


def test_the_template_is_the_policy_of_a_site_that_has_none_and_shows_every_key(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY_TEMPLATE)
    assert load_policy(path) == load_policy(None) == Policy()
    shown = {line.lstrip("# ").partition(":")[0] for line in POLICY_TEMPLATE.splitlines() if ": " in line}
    assert set(Policy.model_fields) <= shown
    path.write_text("\n".join(line.removeprefix("# ") for line in POLICY_TEMPLATE.splitlines()[4:] if ": " in line))
    every = load_policy(path)
    assert all(getattr(every, name) is not None for name in Policy.model_fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: [replay]", "line 1, method: unknown key (did you mean 'methods'?)"),
        ("hours: 20-6", "line 1, hours"),
        ("hours: '25:00-06:00'", "line 1, hours"),
        ("weekdays: [monday]", "line 1, weekdays"),
        ("fewest_images: 0", "line 1, fewest_images"),
        ("most_epsilon: -1", "line 1, most_epsilon"),
        ("- 1", "must contain a mapping of keys to values"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_a_mistake_in_it_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_policy(path)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("units", "unit", "wrong"),
    [
        (["patient"], "image", ["the unit image is not among those allowed: patient"]),
        (["patient"], "patient", []),
        (["image", "patient"], "image", []),
    ],
)
def test_a_policy_can_ask_for_patients_to_be_protected(units: list[str], unit: str, wrong: list[str]) -> None:
    private = {"mechanism": "example", "unit": unit, "epsilon": 8.0}
    config = deployed(["alpha"], ["0", "1"], "streaming_ridge", {"privacy": private})
    policy = Policy.model_validate({"most_epsilon": 8.0, "units": units})
    assert violations(policy, config) == wrong
    # noise at the server hides a site with all its patients
    settings = {"privacy": {**private, "mechanism": "client"}, "method": {"norm": "group"}}
    client = deployed(["alpha"], ["0", "1"], "dynammo", settings)
    both = Policy.model_validate({"most_epsilon": 8.0, "units": units, "mechanisms": ["client"]})
    assert violations(both, client) == []
