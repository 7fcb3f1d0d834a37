"""A site lies where nobody sees its answer by itself: under masks, and in what it takes out of sums again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from hospitals import Hospitals, deployed, make_hospitals
from small_runs import run_small, small_config

import client.steps.secure_answers
from client.consent.settings import load_site
from client.state.withdrawal import WithdrawalLedger
from client.steps.site import Site
from dynammo_core.support.errors import RunError
from dynammo_core.wire.protocol import Instruction, Report
from dynammo_core.wire.sums_form import whole
from server.jobs.forget import forget_run

LIAR = 1
honest_step = client.steps.secure_answers.do_step


def tensors(end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Report], Report]:
    def lie(report: Report) -> Report:
        told = {name: change(t.clone()) if name.endswith(end) else t for name, t in report.weights.items()}
        return replace(report, weights=told)

    return lie


def counts(change: Callable[[list[int]], list[int]]) -> Callable[[Report], Report]:
    def lie(report: Report) -> Report:
        return replace(report, numbers={**report.numbers, "class_counts": change(list(report.class_counts))})

    return lie


def table(name: str) -> Callable[[Report], Report]:
    def lie(report: Report) -> Report:
        true = report.numbers[name]
        assert isinstance(true, list)
        return replace(report, numbers={**report.numbers, name: [true[0] + 50, *true[1:]]})

    return lie


UNDER_MASKS: Mapping[str, tuple[str, str, Callable[[Report], Report], str]] = {
    "four million samples": ("dynammo", "adapt", counts(lambda own: [2 * 10**6 * (n > 0) for n in own]), "samples"),
    "negative number of samples": (
        "dynammo",
        "adapt",
        counts(lambda own: [n - 99 * (n > 0) for n in own]),
        "sum cannot",
    ),
    "a class to come": ("dynammo", "adapt", counts(lambda own: [*own[:9], 5]), "not learnt yet"),
    "a variance of -5": (
        "dynammo",
        "adapt",
        tensors("running_var", lambda t: t * 0 - 5.0),
        "than the square of the mean",
    ),
    "weights of 100,000": ("dynammo", "adapt", tensors("weight", lambda t: t * 0 + 9e5), "reaches"),
    "a Gram matrix of -1": ("streaming_ridge", "sum", tensors(".gram", lambda t: t * 0 - 1.0), "the number of samples"),
    "a Gram matrix of 1e6": (
        "streaming_ridge",
        "sum",
        tensors(".gram", lambda t: t * 0 + 1e6),
        "the number of samples",
    ),
    "a Gram matrix with signs": ("streaming_ridge", "sum", tensors(".products", lambda t: -t), "the number of samples"),
    "other counts": ("streaming_ridge", "sum", tensors(".counts", lambda t: t + 1), "'counts' differ from"),
    "tests that are none": ("streaming_ridge", "evaluate", table("confusion"), "do not add up"),
    "confidence of none": ("streaming_ridge", "evaluate", table("calibration"), "'calibration'"),
}


@pytest.mark.parametrize("name", UNDER_MASKS)
def test_a_sum_that_no_honest_answers_give_is_not_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The masks are real; what the liar hides under them is not what it would have to be."""
    method, stage, lie, words = UNDER_MASKS[name]

    def step(instruction: Instruction, site: Site) -> Report:
        report = honest_step(instruction, site)
        own = site.experiment.steps[instruction.step].stage.name
        report = replace(report, weights=whole(report.weights, site.experiment.build_model(0)))
        return lie(report) if site.index == LIAR and own == stage and not report.abstained else report

    monkeypatch.setattr(client.steps.secure_answers, "do_step", step)
    options = {"federation.secure_aggregation": True, "federation.partition": "iid", "federation.sites": 3}
    with pytest.raises(RunError, match="secure aggregation, step") as caught:
        run_small(small_config(method, options), tmp_path)
    assert words in str(caught.value)


# --- corrections


class TakesTooMuch(Hospitals):
    """Hospitals of which one, when records are withdrawn, takes out so many times what it brought."""

    times = 1.0

    def _at_home(self, message: Message, context: Context) -> Message:
        reply = super()._at_home(message, context)
        if "/forget/" in message.metadata.group_id and self.names[context.node_id] == "alpha":
            numbers = reply.content.metric_records["numbers"]
            numbers["class_counts"] = [int(self.times * n) for n in numbers["class_counts"]]  # type: ignore[union-attr]
            true = {name: array.numpy() for name, array in reply.content.array_records["weights"].items()}
            name = next(name for name in true if name.endswith(".gram"))  # of one image it is a factor without rows
            true[name] = np.zeros((int(self.times) - 1, true[name].shape[1]))
            told = ArrayRecord({name: Array(self.times * tensor) for name, tensor in true.items()})
            reply.content = RecordDict({**reply.content, "weights": told, "numbers": numbers})
        return reply


def test_nobody_takes_out_what_was_never_in(tmp_path: Path) -> None:
    """Twelve times the withdrawn image is more than all sites brought of its class: nothing is forgotten."""
    held = {"alpha": {"0": 5, "1": 5}, "beta": {"0": 5, "1": 5}}
    files: dict[str, Path] = make_hospitals(tmp_path, held).files
    line = TakesTooMuch(files)
    config: Any = deployed(list(held), ["0", "1"], "streaming_ridge", {"method": {"regulariser": 1.0}})
    run = run_small(config, tmp_path / "runs", grid=line).path
    folder = load_site(files["alpha"]).memory.folder
    WithdrawalLedger(folder).withdraw(["alpha-0-1.png"], "purge by record", date(2026, 3, 1))
    before = (run / "checkpoints" / "latest.safetensors").read_bytes()
    line.times = 12.0
    with pytest.raises(RunError, match="subtracted what it never sent"):
        forget_run(line, config, run, tmp_path / "answer.json")
    assert (run / "checkpoints" / "latest.safetensors").read_bytes() == before
    line.times = 1.0
    forget_run(line, config, run, tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["corrected"] == ["alpha"]
