"""Secure aggregation over the wire: the sum is right whoever falls out, and nothing but the sum can be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.common.serde import message_to_proto
from rich.console import Console
from safetensors.torch import load
from small_runs import RUN, Finished, Outcome, Stopped, Wire, events, run_small, small_config, small_site, step_of

import client.steps.secure_answers
from client.app import app
from client.hospital.door import declared
from client.steps.site import Site
from dynammo_core.aggregation.class_aware import Update, class_aware_mean
from dynammo_core.configuration.config import Config, Scalar
from dynammo_core.experiment import Experiment
from dynammo_core.models.heads import head_rows, summed_names
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Action, Step
from dynammo_core.support.errors import RunError
from dynammo_core.wire.envelope import PHASE_TYPES, encode_report
from dynammo_core.wire.protocol import SUMMED, Instruction, Phase, Report
from dynammo_core.wire.secure_aggregation.phases import PHASE_UP
from server.jobs.evaluate import evaluate_run
from server.report.report import write_report
from server.run.answers import Answers
from server.run.asking import Asking
from server.run.exchange import Exchange
from server.run_directory.directory import RunDirectory
from server.run_directory.progress import Progress
from server.watch.progress import final_table
from server.watch.status import RunStatus
from simulations.engines.local_grid import LocalGrid

SITES = 5
THRESHOLD = 4  # of five, by default: more than two thirds
SECURE = {"federation.secure_aggregation": True}
FIVE: dict[str, Scalar] = {"federation.sites": SITES, "federation.partition": "iid", "federation.quorum": 0.4}
Fails = Callable[[int, str], bool]
every_phase = pytest.mark.parametrize("phase", Phase)


def grid_of(fails: Fails = lambda *_: False, sites: int = SITES, kind: type[LocalGrid] = LocalGrid) -> LocalGrid:
    """Sites that answer with an error where `fails(site, message type)`, after they have done what was asked."""

    def handle(message: Message, context: Context) -> Message:
        reply = app(message, context)
        site = int(str(message.content.config_records["instruction"]["site"]))
        return (
            Message(Error(102, "DataError"), reply_to=message) if fails(site, message.metadata.message_type) else reply
        )

    return kind(handle, nodes=sites, run_config={})  # type: ignore[arg-type]


def ask(
    folder: Path,
    grid: LocalGrid,
    secure: bool,
    where: tuple[str, str] = ("streaming_ridge", "sum"),
    overrides: dict[str, Scalar] | None = None,
    needed: int = 1,
) -> tuple[Experiment, Step, Answers]:
    """One step among five sites."""
    method, stage = where
    config = small_config(method, {**FIVE, "federation.secure_aggregation": secure, **(overrides or {})})
    experiment = Experiment(config)
    step, model = step_of(experiment, 0, stage), experiment.build_model(0)
    state = model.state_dict()
    sent = {name: state[name].clone() for name in matching(travelling_names(model), step.stage.down)}
    folder.mkdir(exist_ok=True)
    asking = Asking(experiment, Exchange(grid, config.federation), RunDirectory(folder))
    return experiment, step, asking.ask(step, sent, model, Progress(run=RUN), needed=needed)


def merged(experiment: Experiment, step: Step, answers: Answers) -> dict[str, torch.Tensor]:
    """What the server makes of them, by whichever way they came."""
    model = experiment.build_model(0)
    if answers.total:
        encoding = Asking(experiment, None, None).encoding(step, model)  # type: ignore[arg-type]
        return encoding.mean(answers.total, model.state_dict())
    updates = [Update(report.weights, report.class_counts) for report in answers.reports.values()]
    return class_aware_mean(updates, head_rows(model), model.state_dict(), summed_names(model))


def same_sum(folder: Path, secure: tuple[Experiment, Step, Answers], lost: Iterable[int], **options: Any) -> None:
    """As the plain mean over those who stayed, to 1e-6."""
    plain = ask(folder / "plain", grid_of(lambda site, _: site in lost), secure=False, **options)
    wanted, found = merged(*plain), merged(*secure)
    assert list(secure[2].reports) == [site for site in range(SITES) if site not in lost]
    assert wanted.keys() == found.keys()
    assert wanted
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=1e-6)
    assert secure[2].total
    counts = [report.class_counts for report in plain[2].reports.values()]
    assert secure[2].total.class_counts == np.sum(counts, axis=0).tolist()


# --- who falls out, and when


@pytest.mark.parametrize(("phase", "site"), [*((phase, 2) for phase in Phase), (Phase.MASKED, 0), (Phase.MASKED, 4)])
def test_the_sum_is_right_when_one_of_five_falls_out(tmp_path: Path, phase: Phase, site: int) -> None:
    """In the last exchange its vector is in the sum already."""
    secure = ask(tmp_path, grid_of(lambda one, kind: (one, kind) == (site, PHASE_TYPES[phase])), secure=True)
    lost = () if phase is Phase.OPEN else (site,)
    same_sum(tmp_path, secure, lost)
    assert [(one.site, one.error) for one in secure[2].failures] == [(one, "DataError") for one in lost]


def test_the_sum_is_right_when_sites_fall_out_one_exchange_after_the_other(tmp_path: Path) -> None:
    """With 3 of 5: one after it has dealt shares, one after its vector came."""
    falling = {(3, "train.masked"), (1, "train.open")}
    options = {"overrides": {"federation.secure_threshold": 3}}
    secure = ask(tmp_path, grid_of(lambda *one: one in falling), secure=True, **options)  # type: ignore[arg-type]
    same_sum(tmp_path, secure, (3,))


def test_trained_weights_add_up_too(tmp_path: Path) -> None:
    where = ("dynammo", "adapt")
    secure = ask(tmp_path, grid_of(lambda *one: one == (4, "train.masked")), secure=True, where=where)
    same_sum(tmp_path, secure, (4,), where=where)
    assert secure[2].total
    assert secure[2].total.loss
    assert secure[2].total.loss > 0


@every_phase
def test_below_the_threshold_nothing_is_learnt_and_it_is_said(tmp_path: Path, phase: Phase) -> None:
    with pytest.raises(RunError) as caught:
        ask(tmp_path, grid_of(lambda one, kind: one in (1, 3) and kind == PHASE_TYPES[phase]), secure=True)
    number = list(Phase).index(phase) + 1
    assert f"exchange {number} of 4 ({phase.value}): 3 sites answered, 4 are needed (threshold 4)" in str(caught.value)
    assert "failed: site 1 (DataError, code 102), site 3 (DataError, code 102)" in str(caught.value)
    assert "--resume" in str(caught.value)


def test_a_quorum_above_the_threshold_counts(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"\(masked\): 4 sites answered, 5 are needed"):
        ask(tmp_path, grid_of(lambda *one: one == (0, "train.masked")), secure=True, needed=5)


def test_a_site_that_fails_once_is_asked_again_in_the_same_exchange(tmp_path: Path) -> None:
    failed: set[tuple[int, str]] = set()

    def once(site: int, kind: str) -> bool:
        first = site == 2 and (site, kind) not in failed
        failed.add((site, kind))
        return first

    secure = ask(tmp_path, grid_of(once), secure=True, overrides={"federation.attempts": 2})
    same_sum(tmp_path, secure, ())
    assert secure[2].failures == []


class Lying(LocalGrid):
    """One site opens something other than its shares."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        for reply in replies:
            records = {} if reply.has_error() else reply.content.array_records
            if PHASE_UP[Phase.OPEN] in records.get("weights", {}):
                array = records["weights"][PHASE_UP[Phase.OPEN]]
                array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
        return replies


@pytest.mark.parametrize("lost", [(), (4,)])
def test_shares_that_do_not_fit_give_no_sum(tmp_path: Path, lost: tuple[int, ...]) -> None:
    """A wrong seed makes noise of all counts; a wrong key is not the one behind the public key."""
    grid = grid_of(lambda site, kind: site in lost and kind == "train.masked", kind=Lying)
    with pytest.raises(RunError, match="the sum cannot be computed"):
        ask(tmp_path, grid, secure=True)


# --- whole runs


@dataclass
class SecureRun:
    """A run under secure aggregation: its messages, and what each site really had to say; not to be changed."""

    config: Config[Any]
    path: Path
    handled: list[tuple[Message, Message]]
    true: list[tuple[int, Step, Report]]

    @property
    def steps(self) -> list[Step]:
        return list(Experiment(self.config).steps)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> SecureRun:
    """The small run of DynaMMo on two tasks, in which one of three sites abstains from the first."""
    wire, true, original = Wire(), list[tuple[int, Step, Report]](), client.steps.secure_answers.do_step

    def spied(instruction: Instruction, site: Site) -> Report:
        report = original(instruction, site)
        true.append((site.index, site.experiment.steps[instruction.step], report))
        return report

    config = small_config("dynammo", SECURE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client.steps.secure_answers, "do_step", spied)
        grid = LocalGrid(wire, nodes=3, run_config={})  # type: ignore[arg-type]
        path = run_small(config, tmp_path_factory.mktemp("seen"), grid=grid).path
    return SecureRun(config, path, wire.handled, true)


def test_a_secure_run_gives_what_a_plain_one_gives(finished: Finished, seen: SecureRun) -> None:
    plain, secure = finished("dynammo").outcome, Outcome.of(seen.path)
    keys = ("accuracy_after_tasks", "mean_class_recall_after_tasks", "forgetting", "last_accuracy", "rounds", "status")
    assert {key: plain.summary[key] for key in keys} == {key: secure.summary[key] for key in keys}
    one, other = load(plain.model), load(secure.model)
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-5)  # rounding, after rounds of training
    assert secure.summary["bytes_up"] > 2 * plain.summary["bytes_up"]  # 8 bytes a number for 4, and keys and shares


def test_what_is_hidden_of_a_site_is_said_to_be(seen: SecureRun) -> None:
    run, summary = seen.path, Outcome.of(seen.path).summary
    assert (summary["site_accuracies"], summary["worst_site_accuracy"], summary["sites"]) == ([], None, 3)
    for name in ("accuracy_matrix.csv", "confusion_matrix.csv"):
        lines = (run / name).read_text().splitlines()
        assert len(lines) > 1
        assert all(line.startswith("all,") for line in lines[1:])
    for event in events(run, "step_finished"):
        summed = event["stage"] != "remember"
        assert [site["samples"] for site in event["sites"]] == [None] * 3
        assert {site["abstained"] for site in event["sites"]} == {None if summed else False}
        assert {frozenset(site["metrics"]) for site in event["sites"]} == {frozenset({"seconds"})}
        assert ("total" in event) is summed
        assert event["bytes_up"] == sum(site["bytes_up"] for site in event["sites"])
        assert event["bytes_down"] == sum(site["bytes_down"] for site in event["sites"])
    for event in events(run, "task_evaluated"):
        assert (event["site_accuracies"], event["site_mean_class_recalls"]) == ([], [])
    trained = events(run, "step_finished")[0]
    assert trained["total"]["samples"] == 39  # two classes of 20 training images; a site that has one abstains
    assert trained["total"]["loss"] > 0
    page = write_report(run).read_text()
    assert "Accuracy of the one shared model at each site" not in page
    status = RunStatus(run, events(run)).as_fields(0.0)
    assert [(site["accuracy"], site["images_per_second"]) for site in status["sites"]] == [(None, None)] * 3
    assert [site["mean_class_recall"] for site in status["sites"]] == [None] * 3
    assert status["accuracy"] == summary["last_accuracy"]
    assert status["mean_class_recall"] == summary["mean_class_recall"]
    console = Console(width=100, file=StringIO())
    console.print(final_table(summary | {"seconds": 1.0, "bytes_down": 1}))
    assert "hidden in the sum" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_model_can_be_tested_again_by_all_sites_together(seen: SecureRun, tmp_path: Path) -> None:
    evaluate_run(grid_of(sites=3), seen.config, seen.path, tmp_path / "again.json")
    result, summary = json.loads((tmp_path / "again.json").read_text()), Outcome.of(seen.path).summary
    assert (result["accuracy"], result["mean_class_recall"]) == (summary["last_accuracy"], summary["mean_class_recall"])
    assert (result["sites"], result["worst_site_accuracy"], result["failures"]) == ({}, None, {})
    with pytest.raises(RunError, match=r"exchange 3 of 4 \(masked\): 2 sites answered, 3 are needed"):
        evaluate_run(grid_of(lambda *one: one == (0, "train.masked"), 3), seen.config, seen.path, tmp_path / "b.json")


# --- again, in another order, cut off


QUICK = small_config("ridge", SECURE)  # its steps: count, sum, remember, evaluate, and again


class Reversed(LocalGrid):
    """Lets the last node that was asked answer first."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return super().pull_messages(list(message_ids)[-1:])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Outcome.of(run_small(QUICK, tmp_path_factory.mktemp("quick")).path)


def test_a_secure_run_repeats_bit_for_bit_in_any_order(quick: Outcome, tmp_path: Path) -> None:
    """Though every mask is another."""
    grid = grid_of(sites=3, kind=Reversed)
    assert Outcome.of(run_small(QUICK, tmp_path, grid=grid).path) == quick


def stop_at(kind: str, nth: int) -> Callable[[dict[str, Any]], None]:
    seen = iter(range(10**6))

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == kind and next(seen) == nth:
            raise Stopped

    return listen


@pytest.mark.parametrize(
    ("kind", "nth"),
    # A step of three sites has twelve answers, three in each exchange; the first step is whole, the second is cut off.
    [("answers", 12 + 7), ("answers", 12 + 10), ("step_finished", 1), ("step_finished", 3)],
    ids=["masking", "opening", "opened, not saved", "evaluated, not saved"],
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(quick: Outcome, tmp_path: Path, kind: str, nth: int) -> None:
    with pytest.raises(Stopped):
        run_small(QUICK, tmp_path, listeners=[stop_at(kind, nth)])
    (cut_off,) = tmp_path.iterdir()
    assert Outcome.of(run_small(QUICK, tmp_path, resume=cut_off).path) == quick


def test_a_step_that_was_opened_is_not_opened_for_other_sites(tmp_path: Path) -> None:
    """The sum over all, which was computed before the crash, minus that over all but one, is what the one sent."""
    config = small_config("streaming_ridge", {**SECURE, **FIVE, "federation.quorum": 0.8})
    with pytest.raises(Stopped):
        run_small(config, tmp_path, grid=grid_of(), listeners=[stop_at("step_finished", 1)])
    (cut_off,) = tmp_path.iterdir()
    without = grid_of(lambda one, kind: (one, kind) == (2, "train.masked"))
    with pytest.raises(RunError, match=r"\(open\): 0 sites answered, 4 are needed.*site 0 \(ProtocolError, code 105\)"):
        run_small(config, tmp_path, grid=without, resume=cut_off)
    assert run_small(config, tmp_path, grid=grid_of(), resume=cut_off)


def test_sums_over_pairs_add_up_under_masks_as_they_do_without(tmp_path: Path) -> None:
    """Masks need whole matrices where plain sums travel as thin factors; the classifier is the same."""
    quick: dict[str, Scalar] = {"method.adapt.rounds": 1, "method.multi_scale": False, "method.regulariser": 0.1}
    models = [
        run_small(small_config("moving_ridge", {**quick, **more}), tmp_path / name).path / "model.safetensors"
        for name, more in (("plain", {}), ("masked", SECURE))
    ]
    plain, masked = (load(model.read_bytes()) for model in models)
    assert plain.keys() == masked.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(masked[name], tensor, atol=2e-4, rtol=1e-3)


# --- what the server is sent


def payload(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


def varint(number: int) -> bytes:
    """As protobuf writes a signed integer: zigzag, seven bits a byte."""
    number, parts = 2 * number, []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def traces(report: Report) -> list[bytes]:
    """Counts, loss and weights in every form in which they could stand in a message."""
    found = []
    for name in ("class_counts", "confusion"):
        if isinstance(counts := report.numbers.get(name), list) and any(counts):
            found += [
                b"".join(map(varint, counts)),
                np.array(counts, "<i8").tobytes(),
                np.array(counts, "<i4").tobytes(),
            ]
    if "loss" in report.numbers:
        found += [np.array([report.numbers["loss"]], kind).tobytes() for kind in ("<f8", "<f4")]
    for tensor in report.weights.values():
        if tensor.numel() > 8 and tensor.unique().numel() > 8:
            found.append(tensor.flatten()[:8].contiguous().numpy().tobytes())
    return found


def test_the_search_finds_what_is_not_masked(seen: SecureRun) -> None:
    """The test below looks for something that it would see."""
    handled, true = seen.handled, seen.true
    experiment = Experiment(seen.config)
    for site, step, report in true:
        form = declared(small_site(experiment, site, seen.path), step)
        sent = payload(Message(encode_report(report, form.tensors), reply_to=handled[0][0]))
        assert sum(trace in sent for trace in traces(report)) >= (0 if report.abstained else 1)
        for name in ("class_counts", "confusion", "loss"):
            if name in report.numbers and (name == "loss" or any(report.numbers[name])):  # type: ignore[arg-type]
                assert any(trace in sent for trace in traces(Report(False, {}, {name: report.numbers[name]})))


def test_metrics_and_weights_of_a_site_are_in_no_message(seen: SecureRun) -> None:
    handled, true = seen.handled, seen.true
    assert len(true) == 3 * sum(step.stage.action in SUMMED for step in seen.steps)
    assert {step.stage.action for _, step, _ in true} == {Action.FIT, Action.SUMMARISE, Action.EVALUATE}
    assert any(report.abstained for _, _, report in true)
    sent = [payload(reply) for _, reply in handled]
    for site, step, report in true:
        for trace in traces(report):
            assert not any(trace in one for one in sent), (site, step.stage.name)


def test_messages_of_all_sites_look_alike_even_of_one_that_abstains(seen: SecureRun) -> None:
    handled = seen.handled
    shapes: dict[tuple[str, str], set[str]] = {}
    for message, reply in handled:
        assert set(reply.content) == {"weights", "numbers", "report"}
        numbers, arrays = reply.content.metric_records["numbers"], reply.content.array_records["weights"]
        kind = message.metadata.message_type
        assert set(numbers) == ({"seconds"} if kind in ("train.masked", "train.remember") else set())
        assert dict(reply.content.config_records["report"]) == {"abstained": False}
        step = str(message.content.config_records["instruction"]["step"])
        described = [(name, array.dtype, tuple(array.shape)) for name, array in arrays.items()]
        shapes.setdefault((step, kind), set()).add(str(described))
    assert all(len(alike) == 1 for alike in shapes.values())
    assert {kind for _, kind in shapes} == {*PHASE_TYPES.values(), "train.remember"}
    assert len(handled) == 3 * sum(4 if step.stage.action in SUMMED else 1 for step in seen.steps)


def test_each_masked_vector_is_noise(seen: SecureRun) -> None:
    """Chi-square of bytes, 255 degrees of freedom, within six standard deviations of sqrt(510): keys are fresh ones."""
    vectors = [
        np.frombuffer(reply.content.array_records["weights"][PHASE_UP[Phase.MASKED]].numpy().tobytes(), dtype=np.uint8)
        for message, reply in seen.handled
        if message.metadata.message_type == "train.masked"
    ]
    large = [vector for vector in vectors if len(vector) > 256 * 20]
    assert len(large) == 2 * 3  # of adapters, by each site in each task
    for vector in large:
        counts, expected = np.bincount(vector, minlength=256), len(vector) / 256
        assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * np.sqrt(510)


def test_a_plain_answer_is_refused_in_a_secure_run(tmp_path: Path) -> None:
    config = small_config("replay", SECURE)
    experiment = Experiment(config)
    step, model = step_of(experiment, 0, "train"), experiment.build_model(0)
    sent = {name: model.state_dict()[name] for name in matching(travelling_names(model), step.stage.down)}
    asking = Asking(experiment, Exchange(grid_of(sites=3), config.federation), RunDirectory(tmp_path))
    check = partial(asking._check, step, model)
    answers = asking._ask(asking._question(step, step.stage.action, sent, Progress(run=RUN), check), range(3), 1)
    assert answers.reports == {}
    assert [(failure.error, failure.code) for failure in answers.failures] == [("ProtocolError", 105)] * 3
