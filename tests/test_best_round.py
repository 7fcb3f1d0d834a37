"""The best round of a stage: which images test it, what is kept, when it ends early, and the same after a stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Outcome, Stopped, events, run_small, small_config, small_site

from dynammo_core.best_round import BEST, OVER, Check, close, left_out, note_round
from dynammo_core.configuration.config import resolve
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from dynammo_core.models.heads import LinearHead
from dynammo_core.plan import Fit, Step
from dynammo_core.support.errors import ConfigError
from dynammo_core.wire.protocol import NUMBERS, numbers_of
from server.report.data_flow import CHECKED, data_flow
from server.report.sections.loss_section import kept_rounds
from server.run_directory.run_files import RunFiles

KEEP: dict[str, Any] = {"method.adapt.keep": "best", "method.adapt.held_out": 0.4, "method.adapt.rounds": 3}
EARLY = {**KEEP, "method.adapt.patience": 1, "method.adapt.learning_rate": 1.0, "method.adapt.rounds": 5}
"""A rate at which later rounds are worse."""


def checked(rounds: int = 3, patience: int | None = None) -> tuple[Fit, Check]:
    config = small_config("dynammo", {**KEEP, "method.adapt.rounds": rounds, "method.adapt.patience": patience})
    fit, check = Experiment(config).method.all_stages(0)[:2]
    assert isinstance(fit, Fit) and isinstance(check, Check)
    return fit, check


def test_a_check_follows_each_round_and_nothing_else_leaves_in_it() -> None:
    experiment = Experiment(small_config("dynammo", {**KEEP, "method.adapt.rounds": 2}))
    order = [(step.stage.name, step.round) for step in experiment.steps]
    assert order[:5] == [("adapt", 0), ("adapt_check", 0), ("adapt", 1), ("adapt_check", 1), ("balance", 0)]
    check = checked()[1]
    assert check.up == () and numbers_of(check, private=False) == NUMBERS[check.action]
    assert not any(isinstance(step.stage, Check) for step in Experiment(small_config("dynammo")).steps)


def test_no_patient_is_trained_on_and_tested_on_and_the_same_are_held_out_each_time(tmp_path: Path) -> None:
    fit, check = checked()
    held = small_site(Experiment(small_config("dynammo", KEEP)), 0, tmp_path).rehearsal(0)
    everything = held.new.record_ids
    for _ in range(2):
        trained, tested = fit.learns_from(held).record_ids, check.learns_from(held).record_ids
        assert sorted((*trained, *tested)) == sorted(everything)
        assert 0.2 < len(tested) / len(everything) < 0.6  # a share of 0.4


def test_no_class_is_split_so_that_a_part_of_it_is_too_few(tmp_path: Path) -> None:
    """Of 100 and of 8 images: a hospital that tells of 8 or more trains on all 8, and holds out none of them."""
    config, split = small_config("dynammo", KEEP), dict[tuple[float, int], list[int]]()
    held = small_site(Experiment(config), 0, tmp_path).rehearsal(0)
    labels = torch.tensor([0] * 100 + [1] * 8)
    images = Samples(torch.zeros(108, 1, 8, 8, dtype=torch.uint8), labels, tuple(map(str, range(108))))
    for share in (0.4, 0.8):
        fit, check = Experiment(small_config("dynammo", {**KEEP, "method.adapt.held_out": share})).method.all_stages(0)[
            :2
        ]
        assert isinstance(fit, Fit) and isinstance(check, Check)
        for fewest in range(1, 9):
            few = replace(held, new=images, memory=Samples.empty(), fewest_images=fewest)
            trained, tested = (stage.learns_from(few).class_counts(2) for stage in (fit, check))
            assert [one + other for one, other in zip(trained, tested, strict=True)] == [100, 8]
            assert all(count == 0 or count >= fewest for count in (*trained, *tested))
            split[share, fewest] = [label for label in (0, 1) if tested[label]]
    assert (split[0.4, 1], split[0.4, 8]) == ([0, 1], [0])


def noted(losses: list[float], patience: int | None) -> tuple[float, int]:
    """The weight that is left after rounds with these losses, in each of which it grows by 1, and the rounds done."""
    _, check = checked(len(losses), patience)
    model, archive = torch.nn.ModuleDict({"head": LinearHead(1, (0,))}), dict[str, torch.Tensor]()
    for round_, loss in enumerate(losses):
        torch.nn.init.constant_(model.head.weight, float(round_))
        if note_round(model, archive, Step(0, 0, check, round_), ["head.weight"], loss):  # type: ignore[arg-type]
            break
    return model.head.weight.item(), round_ + 1


@pytest.mark.parametrize(
    ("losses", "patience", "kept", "rounds"),
    [
        ([3, 1, 2, 4], None, 1, 4),
        ([3, 1, 2, 0.5], None, 3, 4),
        ([3, 1, 2, 0.5], 1, 1, 3),
        ([3, 1, 2, 0.5], 2, 3, 4),
        ([1, 1, 1], 2, 0, 3),
        ([math.nan, math.nan, math.nan], None, 2, 3),
        ([0.1, math.nan, 5, 9], None, 0, 4),
    ],
)
def test_the_round_with_the_least_loss_is_kept(
    losses: list[float], patience: int | None, kept: int, rounds: int
) -> None:
    assert noted(losses, patience) == (kept, rounds)


def test_what_was_noted_goes_with_the_stage() -> None:
    _, check = checked(2)
    archive = {f"{BEST}x": torch.ones(1), "set0.x": torch.ones(1)}
    close(archive, early=True)
    assert archive.keys() == {OVER, "set0.x"}
    assert left_out(archive, Step(0, 0, check.of, 1)) and left_out(archive, Step(1, 0, check, 1))
    assert archive.keys() == {"set0.x"}
    assert not left_out(archive, Step(2, 0, check.of, 0))


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["event"] == kind]


def check_losses(run: Path, task: int) -> Iterator[float]:
    for event in of_kind(run, "step_finished"):
        if (event["task"], event["stage"]) == (task, "adapt_check"):
            told = [(site["metrics"]["loss"], site["samples"]) for site in event["sites"] if site["samples"]]
            yield sum(loss * count for loss, count in told) / sum(count for _, count in told)


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage ends early; not to be changed."""
    return run_small(small_config("dynammo", EARLY), tmp_path_factory.mktemp("early")).path


def test_a_stage_ends_early_with_its_best_round_and_asks_nobody_for_the_rest(early: Path) -> None:
    kept = of_kind(early, "round_kept")
    assert [event["task"] for event in kept] == [0, 1]
    for event in kept:
        losses = list(check_losses(early, event["task"]))
        assert len(losses) == event["kept"] + 2 < 5  # one round more than the best, and then no more
        assert event["loss"] == pytest.approx(min(losses)) and losses[event["kept"]] == min(losses)
    words = kept_rounds(RunFiles.read(early))
    assert [line.split(", loss")[0] for line in words] == [
        f"task {event['task'] + 1}, adapt: round {event['kept'] + 1} of {event['kept'] + 2} done" for event in kept
    ]


def test_the_sheet_says_that_a_check_sends_a_loss_and_no_tensors(early: Path) -> None:
    sheet = data_flow(early)
    rows = [line for line in sheet.splitlines() if "adapt_check" in line and CHECKED in line]
    assert len(rows) == 2 and all("| none |" in row and "`loss`" in row for row in rows)


def test_a_run_that_stops_at_a_check_goes_on_to_the_same_end(early: Path, tmp_path: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step_finished" and event["stage"] == "adapt_check":
            raise Stopped

    config = small_config("dynammo", EARLY)
    with pytest.raises(Stopped):
        run_small(config, tmp_path, listeners=[stop])
    (stopped,) = tmp_path.iterdir()
    assert Outcome.of(run_small(config, tmp_path, resume=stopped).path) == Outcome.of(early)


def test_the_mean_over_sites_decides_under_masks_too(tmp_path: Path) -> None:
    keep = {name.replace("adapt", "train"): value for name, value in KEEP.items()}
    plain, masked = (
        run_small(small_config("fine_tune", {**keep, **more}), tmp_path / name)
        for name, more in (("plain", {}), ("masked", {"federation.secure_aggregation": True}))
    )
    first, second = (of_kind(run.path, "round_kept") for run in (plain, masked))
    assert [event["kept"] for event in first] == [event["kept"] for event in second]
    assert [event["loss"] for event in first] == pytest.approx([event["loss"] for event in second], rel=1e-3)


def test_privacy_and_patience_without_a_best_round_are_refused() -> None:
    private = {"privacy": {"mechanism": "example", "epsilon": 8.0, "clip": 1.0}}
    section = {"name": "dynammo", "norm": "group", "adapt": {"keep": "best"}}
    with pytest.raises(ConfigError, match=r"method.adapt.keep: best"):
        resolve({"method": section, **private}, "test", {})
    with pytest.raises(ConfigError, match="patience 2 waits"):
        resolve({"method": {"name": "dynammo", "adapt": {"patience": 2}}}, "test", {})
