"""Weights travel once per change: what a site holds is not sent, and a site that holds less is sent everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message
from small_runs import SITES, Finished, Outcome, events, instruction, run_small, small_config, step_of

from client.app import app
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import MissingTensorsError
from dynammo_core.wire.compression import CODECS
from dynammo_core.wire.envelope import Parcel
from dynammo_core.wire.protocol import tensor_bytes
from dynammo_core.wire.protocol_checks import opened_report
from dynammo_core.wire.tensor_store import FILE
from server.run.answers import Answers, Failure
from server.run.deliveries import Deliveries
from server.run.exchange import Exchange, Question
from simulations.engines.local_grid import LocalGrid

EXPERIMENT = Experiment(small_config())
STEP = step_of(EXPERIMENT, 1, "adapt")
SENT = instruction(EXPERIMENT, STEP, 0, Path("nowhere")).weights
WHOLE = tensor_bytes(SENT)
HEAD = 4 * 65 * 3
"""Bytes of a head of two classes and the others, over 64 features, in float32."""
ALPHA = "extractor.adapters.0.alpha"


class Sites:
    """An exchange with real sites, asked again and again, and how often each was."""

    def __init__(self, folder: Path, client: Callable[[Message, Context], Message] = app) -> None:
        self.folder, self.calls = folder, [0] * SITES
        self._client = client
        grid = LocalGrid(self._counted, nodes=SITES, run_config={})  # type: ignore[arg-type]
        self.exchange = Exchange(grid, EXPERIMENT.config.federation)

    def _counted(self, message: Message, context: Context) -> Message:
        told = message.content.config_records["instruction"]
        self.calls[int(told["site"])] += 1  # type: ignore[arg-type]
        told["workspace"] = str(self.folder / str(told["site"]))  # a disk for each site
        return self._client(message, context)

    def ask(self, **changes: torch.Tensor) -> Answers:
        weights = {**SENT, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
        question = Question(
            STEP.stage.action,
            replace(instruction(EXPERIMENT, STEP, -1, self.folder), weights=weights),
            check=lambda _, report: opened_report(
                report, STEP.stage, EXPERIMENT.build_model(1), 10, codec=CODECS["none"], sent=weights
            ),
            deadline=60.0,
        )
        quiet = {"on_waiting": lambda _: None, "on_asked": lambda _: None, "on_answers": lambda *_: None}
        return self.exchange.ask(question, range(SITES), needed=1, **quiet)


def bits(answers: Answers) -> list[dict[str, bytes]]:
    return [{name: t.numpy().tobytes() for name, t in report.weights.items()} for report in answers.reports.values()]


def test_only_what_has_changed_travels_again(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    first, second = sites.ask(), sites.ask()
    assert dict(first.bytes_down) == dict.fromkeys(range(SITES), WHOLE)
    assert dict(first.bytes_held) == dict.fromkeys(range(SITES), 0)
    assert dict(second.bytes_down) == dict.fromkeys(range(SITES), 0)
    assert dict(second.bytes_held) == dict.fromkeys(range(SITES), WHOLE)
    assert bits(first) == bits(second)
    third = sites.ask(**{ALPHA.replace(".", "__"): torch.tensor(0.25)})
    assert dict(third.bytes_down) == dict.fromkeys(range(SITES), 4)
    assert bits(third) == bits(Sites(tmp_path / "anew").ask(**{ALPHA.replace(".", "__"): torch.tensor(0.25)}))
    assert sites.calls == [3] * SITES


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_a_site_that_lacks_something_is_sent_everything_at_once(tmp_path: Path, damage: str) -> None:
    """As part of the same question: the answers are the same, nobody failed, and only that site was asked twice."""
    sites = Sites(tmp_path)
    first = sites.ask()
    file = tmp_path / "1" / FILE
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink() if damage == "gone" else file.write_bytes(content)
    second = sites.ask()
    assert second.failures == []
    assert bits(second) == bits(first)
    assert dict(second.bytes_down) == {0: 0, 1: WHOLE, 2: 0}
    assert sites.calls == [2, 3, 2]
    assert sites.ask().bytes_down.total() == 0


def test_a_site_that_lacks_what_it_was_just_sent_has_failed(tmp_path: Path) -> None:
    def forgetful(message: Message, context: Context) -> Message:
        if message.content.config_records["instruction"]["site"] == 1:
            return Message(Error(MissingTensorsError.code, "MissingTensorsError"), reply_to=message)
        return app(message, context)

    sites = Sites(tmp_path, forgetful)
    for _ in range(2):
        assert sites.ask().failures == [Failure(1, 110, "MissingTensorsError")]
    assert sites.calls == [2, 2, 2]


def test_what_a_site_did_not_answer_well_to_it_is_not_taken_to_hold(tmp_path: Path) -> None:
    failing = [True]

    def fails_once(message: Message, context: Context) -> Message:
        if message.content.config_records["instruction"]["site"] == 1 and failing[0]:
            return Message(Error(102, "DataError"), reply_to=message)
        return app(message, context)

    sites = Sites(tmp_path, fails_once)
    assert sites.ask().bytes_down[1] == WHOLE
    failing.clear()
    failing.append(False)
    assert dict(sites.ask().bytes_down) == {0: 0, 1: WHOLE, 2: 0}
    assert sites.calls == [2, 2, 2]


def test_of_each_name_a_site_is_taken_to_hold_the_last_tensor() -> None:
    def parcel(**values: float) -> Parcel:
        return Parcel.of({name: torch.tensor(value) for name, value in values.items()})

    deliveries = Deliveries()
    assert deliveries.lacking(0, parcel(a=1, b=2)) == ["a", "b"]
    deliveries.arrived(0, parcel(a=1, b=2))
    assert deliveries.lacking(0, parcel(a=3, b=2, teacher=1)) == ["a"]  # the teacher is what `a` was
    assert deliveries.lacking(1, parcel(b=2)) == ["b"]
    deliveries.arrived(0, parcel(a=3))
    assert deliveries.lacking(0, parcel(a=1, b=2)) == ["a"]
    deliveries.forget(0)
    assert deliveries.lacking(0, parcel(b=2)) == ["b"]


# --- whole runs


def steps(directory: Path) -> dict[tuple[int, str, int], dict[str, Any]]:
    return {(e["task"], e["stage"], e["round"]): e for e in events(directory, "step_finished")}


def test_in_a_run_heads_alone_travel_while_the_adapters_stand(finished: Finished) -> None:
    done = steps(finished("dynammo").path)
    # The first balancing brings the heads that have just been made (and of one task no other adapters than trained).
    assert done[0, "balance", 1]["bytes_down"] == SITES * HEAD
    assert done[1, "balance", 1]["bytes_down"] == SITES * 2 * HEAD
    assert done[1, "remember", 0]["bytes_down"] == SITES * 2 * HEAD  # the heads that balancing has made
    assert done[0, "evaluate", 0]["bytes_down"] == done[1, "evaluate", 0]["bytes_down"] == 0
    for (_, stage, _), step in done.items():
        whole = {"adapt": WHOLE}.get(stage)
        if whole:
            assert step["bytes_down"] + step["bytes_held"] == SITES * whole


def test_a_disk_that_is_wiped_in_a_run_changes_nothing_but_the_bytes(finished: Finished, tmp_path: Path) -> None:
    def wipe(event: dict[str, Any]) -> None:
        if event["event"] == "step_started" and (event["task"], event["stage"], event["round"]) == (1, "balance", 1):
            (file,) = tmp_path.rglob(FILE)
            file.unlink()

    run = run_small(small_config(), tmp_path, listeners=[wipe])
    assert Outcome.of(run.path) == finished("dynammo").outcome
    assert events(run.path, "asking_again") == []
    undisturbed, wiped = steps(finished("dynammo").path), steps(run.path)
    key = (1, "balance", 1)
    # Each of them lacks the adapters, and is sent everything after the heads that it was sent at first.
    heads, adapters = undisturbed[key]["bytes_down"], undisturbed[key]["bytes_held"]
    assert wiped[key]["bytes_down"] == heads + (heads + adapters)
    assert not any(step["failures"] for step in wiped.values())
    assert all(wiped[other]["bytes_down"] == step["bytes_down"] for other, step in undisturbed.items() if other != key)


@pytest.mark.parametrize("compression", ["float16", "int8", "int8_both"])
def test_a_run_in_fewer_bytes_learns_as_well(finished: Finished, tmp_path: Path, compression: str) -> None:
    config = small_config(overrides={"federation.compression": compression})
    run, plain = run_small(config, tmp_path), finished("dynammo").summary
    summary = json.loads((run.path / "summary.json").read_text())
    # 40 test images: two may fall on another side.
    assert summary["last_accuracy"] == pytest.approx(plain["last_accuracy"], abs=5)
    if compression == "int8_both":  # a byte each, a scale a row, and of vectors two
        assert plain["bytes_down"] / 4 < summary["bytes_down"] < plain["bytes_down"] / 3
    else:  # half of it, but for what changes too little to be seen in eleven bits and so does not travel again
        assert 0.49 < summary["bytes_down"] / plain["bytes_down"] <= 0.5
    if compression == "float16":
        assert summary["bytes_up"] == plain["bytes_up"] / 2
    else:
        assert plain["bytes_up"] / 4 < summary["bytes_up"] < plain["bytes_up"] / 3


def test_rounding_errors_survive_a_stop(tmp_path: Path) -> None:
    """Stopped before the checkpoint of a round: the sites have advanced their errors, and are asked once more."""
    config = small_config(overrides={"federation.compression": "int8", "method.balance.rounds": 3})

    class Cut(BaseException):
        pass

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step_finished" and (event["task"], event["stage"], event["round"]) == (0, "balance", 1):
            raise Cut

    whole = run_small(config, tmp_path / "whole")
    with pytest.raises(Cut):
        run_small(config, tmp_path / "cut", listeners=[stop])
    (directory,) = (tmp_path / "cut").iterdir()
    run_small(config, tmp_path / "cut", resume=directory)
    assert Outcome.of(directory) == Outcome.of(whole.path)
