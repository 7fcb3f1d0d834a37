"""What a site does under example-level privacy: pays first, says only what is noised, and stops in time."""

from __future__ import annotations

import csv
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_runs import (
    SITES,
    Outcome,
    events,
    hospital_config,
    instruction,
    run_small,
    small_config,
    small_site,
    step_of,
    write_hospitals,
)

from client.state.privacy_ledger import Ledger, LedgerFile
from client.steps.actions import answer
from client.steps.private_actions import Permit  # noqa: F401 - imported where it is first needed, and that takes seconds
from client.steps.site import Site
from dynammo_core.configuration.config import Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.plan import Action
from dynammo_core.privacy.accounting import compose, site_epsilon
from dynammo_core.privacy.plan import example_charges
from dynammo_core.support.errors import ConfigError, DataError
from dynammo_core.wire.protocol import PRIVATE_NUMBERS, Report

PRIVATE: dict[str, Scalar] = {"privacy.mechanism": "example", "method.norm": "group", "privacy.epsilon": 8}
AUGMENTED: dict[str, Scalar] = {"data.augmentation": "crop"}
HEADS: dict[str, Scalar] = {"privacy.mechanism": "example", "method.adapters": False, "privacy.epsilon": 8}
SUMS: dict[str, Scalar] = {"privacy.mechanism": "example", "privacy.epsilon": 8, "privacy.feature_norm": 10}
EXPERIMENT = Experiment(small_config("dynammo", PRIVATE))


def ask(experiment: Experiment, task: int, stage: str, workspace: Path, *, site: int = 0, round_: int = 0) -> Report:
    sent = instruction(experiment, step_of(experiment, task, stage, round_), site, workspace)
    return answer(sent, small_site(experiment, site, workspace))


def ledger(workspace: Path, site: int = 0) -> Ledger:
    return LedgerFile(workspace / f"site-{site:03d}").read()


def test_a_whole_run_repeats_and_keeps_its_budget(tmp_path: Path) -> None:
    runs = [run_small(EXPERIMENT.config, tmp_path / name).path for name in ("one", "other")]
    one, other = map(Outcome.of, runs)
    assert one == other
    facts = one.summary["privacy"]
    assert facts["neighbours"] == "one training image of one site more or less"
    assert (facts["delta"], facts["budget"]) == (1e-5, 8)
    assert facts["epsilon"] == max(facts["epsilon_by_site"]) <= 8
    # The noise is the least that the plan allows, and a site that has images of every task does all of the plan.
    planned = site_epsilon(example_charges(EXPERIMENT.method, EXPERIMENT.steps, EXPERIMENT.noise_multiplier), 1e-5)
    assert facts["epsilon_by_site"][0] == pytest.approx(planned, abs=1e-4)
    assert 7.8 < planned <= 8
    for site in range(SITES):
        spent = LedgerFile(runs[0] / "sites" / f"site-{site:03d}").read().epsilon(1e-5)
        assert spent == pytest.approx(facts["epsilon_by_site"][site], abs=1e-4)
    for step in events(runs[0], "step_finished"):
        for entry in step["sites"]:
            wanted = set() if step["stage"] == "evaluate" else {"epsilon"}
            assert set(entry["metrics"]) - {"seconds"} == wanted
    assert json.loads((runs[0] / "sites" / "site-000" / "privacy.json").read_text())["census"].keys() == set("0123")


@pytest.mark.parametrize("method", ["ridge", "streaming_ridge"])
def test_a_run_of_sums_keeps_its_budget(tmp_path: Path, method: str) -> None:
    experiment = Experiment(small_config(method, SUMS))
    summary = json.loads((run_small(experiment.config, tmp_path).path / "summary.json").read_text())
    assert 7 < summary["privacy"]["epsilon"] <= 8
    stages = [(c.task, c.stage, c.classes) for c in example_charges(experiment.method, experiment.steps, 1.0)]
    old = (0, 1) if method == "ridge" else ()  # streaming sums each image once, in the task that it comes with
    counted = [(0, "census", (0, 1)), (1, "census", (2, 3))]
    assert stages == [*counted, (0, "sum", (0, 1)), (1, "sum", (*old, 2, 3))]


def test_only_what_is_noised_is_said(tmp_path: Path) -> None:
    """24 exemplars of three sites and two classes are four a class, however many there are in truth."""
    true = small_site(EXPERIMENT, 0, tmp_path).train_images((0, 1)).class_counts(2)
    for step in EXPERIMENT.steps[: len(EXPERIMENT.steps) // 2]:
        report = ask(EXPERIMENT, step.task, step.stage.name, tmp_path, round_=step.round)
        assert set(report.numbers) == PRIVATE_NUMBERS[step.stage.action]
        counted = [ledger(tmp_path).census[label] for label in range(2)]
        assert counted != true
        if step.stage.action is Action.FIT:
            assert report.class_counts == counted + [0] * 8
        elif step.stage.action is Action.REMEMBER:
            assert report.class_counts == [4, 4] + [0] * 8


def test_single_images_are_clipped_and_noised_in_full_precision_whatever_networks_compute_in(tmp_path: Path) -> None:
    exact, coarse = (
        ask(Experiment(small_config("dynammo", {**PRIVATE, **AUGMENTED, **more})), 0, "adapt", tmp_path / str(number))
        for number, more in enumerate(({}, {"compute.precision": "bf16"}))
    )
    assert all(torch.equal(exact.weights[name], coarse.weights[name]) for name in exact.weights)
    assert exact.weights


def test_an_answer_asked_for_twice_is_the_same_and_paid_once(tmp_path: Path) -> None:
    first = ask(EXPERIMENT, 0, "adapt", tmp_path)
    paid = ledger(tmp_path).charges
    again = ask(EXPERIMENT, 0, "adapt", tmp_path)
    assert ledger(tmp_path).charges == paid
    assert list(paid) == ["1/census/1", "1/adapt/1"]
    assert first.numbers == again.numbers
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    other = ask(EXPERIMENT, 0, "balance", tmp_path, round_=1)
    assert other.numbers["epsilon"] > first.numbers["epsilon"]  # type: ignore[operator]


def test_a_real_site_draws_new_noise_and_pays_anew(tmp_path: Path) -> None:
    site = Site(**vars(small_site(EXPERIMENT, 0, tmp_path)))
    sent = instruction(EXPERIMENT, step_of(EXPERIMENT, 0, "adapt"), 0, tmp_path)
    first, again = answer(sent, site), answer(sent, site)
    assert first.numbers["class_counts"] == again.numbers["class_counts"]  # of one census
    assert not any(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert list(ledger(tmp_path).charges) == ["1/census/1/0", "1/adapt/1/1", "1/adapt/1/2"]
    assert again.numbers["epsilon"] > first.numbers["epsilon"]  # type: ignore[operator]


def test_a_site_that_would_pass_its_budget_abstains_and_says_why_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With this noise each round costs the same; the budget is what the census and one round cost, and a little."""
    noise: dict[str, Scalar] = {**PRIVATE, "privacy.noise_multiplier": 1.0}
    free = Experiment(small_config("dynammo", {**noise, "privacy.epsilon": 1000}))
    spent = float(str(ask(free, 0, "adapt", tmp_path / "free").numbers["epsilon"]))
    tight = Experiment(small_config("dynammo", {**noise, "privacy.epsilon": spent + 0.01}))
    assert not ask(tight, 0, "adapt", tmp_path).abstained
    caplog.set_level(logging.WARNING, "dynammo.client")
    before = ledger(tmp_path).charges
    for stage, round_ in (("balance", 0), ("balance", 1)):
        report = ask(tight, 0, stage, tmp_path, round_=round_)
        assert report == Report(True, {}, {"epsilon": spent})
    assert "abstains from 1/balance/1: epsilon would be" in caplog.text
    assert f"the budget is {spent + 0.01:g}" in caplog.text
    assert ledger(tmp_path).charges == before
    assert not ask(tight, 0, "adapt", tmp_path).abstained  # the same bits again


def test_a_site_without_budget_for_its_counts_takes_part_in_nothing(tmp_path: Path) -> None:
    broke = Experiment(small_config("dynammo", {**PRIVATE, "privacy.noise_multiplier": 1.0, "privacy.epsilon": 0.1}))
    assert ask(broke, 0, "adapt", tmp_path) == Report(True, {}, {"epsilon": 0.0})
    remembered = ask(broke, 0, "remember", tmp_path)
    assert (sum(remembered.class_counts), remembered.numbers["epsilon"]) == (0, 0.0)
    assert len(small_site(broke, 0, tmp_path).memory().samples) == 0


def test_a_site_that_holds_nothing_answers_like_the_others(tmp_path: Path) -> None:
    """Whether it abstains is the census's to say: one that counted images trains, on empty batches, on noise alone."""
    experiment = Experiment(small_config("dynammo", PRIVATE))
    site = small_site(experiment, 0, tmp_path)
    ask(experiment, 0, "remember", tmp_path)  # takes the census
    with LedgerFile(tmp_path / "site-000").changing() as own:
        own.census.update({2: 30, 3: 30})
    held = [i for i, label in enumerate(experiment.dataset.train.labels) if label in (2, 3)]
    assert held and len(site.train_images((2, 3)))
    empty = replace(experiment.partition, train=tuple(part[:0] for part in experiment.partition.train))
    experiment.__dict__["partition"] = empty
    report = answer(
        instruction(experiment, step_of(experiment, 1, "adapt"), 0, tmp_path), small_site(experiment, 0, tmp_path)
    )
    assert not report.abstained
    assert report.class_counts[2:4] == [30, 30]


def test_client_level_noise_is_the_servers(tmp_path: Path) -> None:
    config = small_config("dynammo", {**PRIVATE, "privacy.mechanism": "client", "privacy.clip": 0.1})
    experiment = Experiment(config)
    report = ask(experiment, 0, "adapt", tmp_path)
    sent = instruction(experiment, step_of(experiment, 0, "adapt"), 0, tmp_path).weights
    squares = (float((tensor.double() - sent[name].double()).square().sum()) for name, tensor in report.weights.items())
    assert math.sqrt(sum(squares)) == pytest.approx(
        0.1, abs=1e-5
    )  # what privacy.clip lets it be; without it is twice that
    one, other = (Outcome.of(run_small(config, tmp_path / name).path) for name in ("one", "other"))
    assert one == other
    assert one.summary["privacy"]["neighbours"] == "one site more or less, with all its images"
    assert 7.8 < one.summary["privacy"]["epsilon"] <= 8


@pytest.mark.parametrize(
    ("method", "overrides", "reason"),
    [
        (
            "dynammo",
            {},
            "privacy: example cannot be combined with .* batch norm mixes the images.* set method.norm: group",
        ),
        ("acl", {"privacy.mechanism": "client"}, "set method.norm: group"),
        ("replay", {}, "no bound on how much one image can change what a site sends"),
        (
            "ridge",
            {"privacy.mechanism": "client"},
            "its sums over samples have no mean over sites; set privacy.mechanism: example",
        ),
        ("streaming_ridge", {"federation.arrival": "asynchronous"}, "would reveal which site has it"),
        (
            "dynammo",
            {"privacy.mechanism": "client", "method.adapters": False, "federation.aggregator": "median"},
            "the noise is calibrated for a mean",
        ),
    ],
)
def test_what_noise_cannot_protect_is_refused(method: str, overrides: dict[str, Scalar], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        small_config(method, {"privacy.mechanism": "example", **overrides})


def test_heads_alone_need_no_group_norm_and_batch_norm_is_found_in_the_network() -> None:
    Experiment(small_config("dynammo", {"privacy.mechanism": "example", "method.adapters": False})).check()
    mixed = Experiment(small_config("dynammo", PRIVATE))
    mixed.__dict__["method"] = Experiment(small_config("dynammo")).method
    mixed.__dict__["noise_multiplier"] = 1.0
    with pytest.raises(ConfigError, match=r"adapters\.0\.residual\.1 \(BatchNorm\) cannot be trained privately"):
        mixed.check()


def by_patients(folder: Path, method: str, overrides: dict[str, Scalar]) -> Experiment:
    """Three hospitals whose patients have up to four images, of any class; those in the tests are others."""
    write_hospitals(folder, {site: dict.fromkeys("0123", 9) for site in ("alpha", "beta", "gamma")})
    head, *rows = csv.reader((folder / "manifest.csv").open())
    for row in rows:
        number = int(row[0].removesuffix(".png").rpartition("-")[2])
        row.append(f"{row[3]}-{number % 7}" if row[2] == "train" else row[0])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "patient"], *rows])
    return Experiment(hospital_config(folder, method, 3, {**overrides, "privacy.unit": "patient", "tasks.sizes": 2}))


@pytest.mark.parametrize(("method", "private"), [("dynammo", HEADS), ("streaming_ridge", SUMS), ("ridge", SUMS)])
def test_a_run_that_protects_patients_keeps_its_budget(tmp_path: Path, method: str, private: dict[str, Scalar]) -> None:
    experiment = by_patients(tmp_path / "images", method, private)
    run = run_small(experiment.config, tmp_path / "runs").path
    facts = json.loads((run / "summary.json").read_text())["privacy"]
    assert facts["neighbours"] == "one patient of one site more or less, with all training images"
    planned = example_charges(experiment.method, experiment.steps, experiment.noise_multiplier)
    assert facts["epsilon"] == pytest.approx(compose(planned, 1e-5), abs=1e-4)
    assert 7.5 < facts["epsilon"] <= 8
    written = json.loads((run / "sites" / "site-000" / "privacy.json").read_text())
    assert {charge["unit"] for charge in written["charges"].values()} == {"patient"}
    memory = small_site(experiment, 0, run / "sites").store.path
    assert memory.exists() == experiment.method.uses_memory


def test_the_census_counts_each_patient_once(tmp_path: Path) -> None:
    """Seven patients, 18 images of the two classes of a task: 3.5 of each class, before the noise."""
    exact = {**PRIVATE, "privacy.noise_multiplier": 1e5, "privacy.count_noise": 0.05, "privacy.epsilon": 1e9}
    experiment = by_patients(tmp_path / "images", "dynammo", exact)
    assert small_site(experiment, 0, tmp_path).new_images(0).class_counts(2) == [9, 9]
    ask(experiment, 0, "remember", tmp_path)
    assert sum(ledger(tmp_path).census.values()) in (6, 7, 8)  # each is rounded to 3 or 4
    assert set(ledger(tmp_path).census.values()) <= {3, 4}


def test_a_site_that_knows_no_patients_protects_none(tmp_path: Path) -> None:
    experiment = by_patients(tmp_path / "images", "dynammo", PRIVATE)
    dataset = experiment.dataset
    experiment.__dict__["dataset"] = replace(dataset, train=replace(dataset.train, patients=()))
    for stage in ("adapt", "remember"):
        with pytest.raises(DataError, match="does not say which patient an image shows"):
            ask(experiment, 0, stage, tmp_path / "site")
    assert ledger(tmp_path / "site").charges == {}
