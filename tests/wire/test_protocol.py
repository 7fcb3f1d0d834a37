"""What may travel: every report that is not exactly what its stage declares is refused, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import ALL_METHODS, small_config, step_of
from torch import Tensor

from dynammo_core.experiment import Experiment
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import travelling_names
from dynammo_core.plan import Action, Stage, Summarise, nothing
from dynammo_core.scoring.reliability import Reliability
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.compression import CODECS, pack
from dynammo_core.wire.protocol import NUMBERS, SUMMED, TOGETHER, Phase, Report, extremes, names_up, tensor_bytes
from dynammo_core.wire.protocol_checks import check_report, opened_report
from dynammo_core.wire.secure_aggregation.offers import OFFER_BYTES
from dynammo_core.wire.secure_aggregation.phases import PHASE_UP, check_phase

CLASSES = 10
STAGES = {
    Action.FIT: "adapt",
    Action.SUMMARISE: "recalibrate",
    Action.REMEMBER: "remember",
    Action.EVALUATE: "evaluate",
    Action.FORGET: "recalibrate",
}
WITH_TENSORS = (Action.FIT, Action.SUMMARISE, Action.FORGET)
every_action = pytest.mark.parametrize("action", Action)
with_tensors = pytest.mark.parametrize("action", WITH_TENSORS)


@cache
def experiment() -> Experiment:
    return Experiment(small_config())


@cache
def model() -> IncrementalModel:
    return experiment().build_model(1)


def stage_of(action: Action) -> Stage:
    stage = step_of(experiment(), 1, STAGES[action]).stage
    if action is Action.FORGET:  # beside the plan: it takes back what another stage brought
        assert isinstance(stage, Summarise)
        return replace(stage, correct=nothing).correction()
    assert stage.action is action
    return stage


def right(action: Action) -> Report:
    """The answer that the stage declares."""
    state = model().state_dict()
    weights = {name: state[name].clone() for name in names_up(model(), stage_of(action))}
    values = tables_of([1] * CLASSES)
    return Report(False, weights, {name: values.get(name, 0.5) for name in NUMBERS[action]})


def tables_of(counts: list[int]) -> dict[str, float | list[int]]:
    """All tables of so many test images a class, each of them answered rightly and half sure."""
    half = np.full(sum(counts), 0.5)
    tables = Reliability.counted(half, np.ones(len(half), dtype=bool), half, np.empty(0))
    return {"class_counts": counts, "confusion": np.diag(counts).flatten().tolist(), **tables.as_numbers()}


def check(action: Action, report: Report) -> None:
    check_report(report, stage_of(action), model(), CLASSES)


def refused(action: Action, report: Report) -> str:
    with pytest.raises(ProtocolError) as caught:
        check(action, report)
    return str(caught.value)


def with_numbers(report: Report, **changed: Any) -> Report:
    return replace(report, numbers={**report.numbers, **changed})


def test_each_action_declares_what_it_returns() -> None:
    assert set(NUMBERS) == set(Action) == set(STAGES)
    assert all({"class_counts", "seconds"} <= names for names in NUMBERS.values())
    assert [action for action in Action if right(action).weights] == list(WITH_TENSORS)


@every_action
def test_the_declared_report_is_accepted(action: Action) -> None:
    check(action, right(action))


@every_action
def test_a_report_that_abstains_is_empty(action: Action) -> None:
    check(action, Report(abstained=True))
    smuggled = Report(True, {"extractor.adapters.0.alpha": torch.tensor(1.0)})
    assert "unknown tensor 'extractor.adapters.0.alpha'" in refused(action, smuggled)
    assert "missing" in refused(action, Report(True, {}, {"seconds": 1.0}))


@every_action
def test_a_report_that_does_not_abstain_is_whole(action: Action) -> None:
    assert "missing" in refused(action, Report(abstained=False))


@every_action
@pytest.mark.parametrize(
    "name",
    ["images", "extractor.backbone.prefix.block0.0.weight", "heads.task7.weight", "sums.gram", "teacher.x"],
)
def test_an_undeclared_tensor_is_refused_by_name(action: Action, name: str) -> None:
    report = right(action)
    message = refused(action, replace(report, weights={**report.weights, name: torch.zeros(3)}))
    assert f"unknown tensor {name!r}" in message


@with_tensors
def test_tensors_of_the_other_stages_are_refused(action: Action) -> None:
    """A trained head is not to come back from the stage that re-estimates statistics, and so on."""
    others = set(travelling_names(model())) - set(names_up(model(), stage_of(action)))
    assert others
    report = right(action)
    for name in others:
        refused(action, replace(report, weights={**report.weights, name: model().state_dict()[name]}))


def test_squared_gradients_leave_for_each_parameter_and_for_nothing_else() -> None:
    own = Experiment(small_config("dynammo", {"method.merge": "fisher"}))
    stage, state = step_of(own, 1, "fisher").stage, model().state_dict()
    numbers = right(Action.SUMMARISE).numbers
    names = names_up(model(), stage)
    parameters = dict(model().named_parameters())
    assert set(names) == {name for name in parameters if ".adapters." in name}
    report = Report(False, {name: state[name].square() for name in names}, numbers)
    check_report(report, stage, model(), CLASSES)
    for name in ("heads.auxiliary.weight", "extractor.adapters.0.residual.1.running_var"):
        with pytest.raises(ProtocolError, match=f"unknown tensor '{name}'"):
            check_report(replace(report, weights={**report.weights, name: state[name]}), stage, model(), CLASSES)


@with_tensors
def test_each_missing_tensor_is_refused_by_name(action: Action) -> None:
    report = right(action)
    for name in report.weights:
        left = {other: tensor for other, tensor in report.weights.items() if other != name}
        assert refused(action, replace(report, weights=left)) == f"the tensor {name!r} is missing."


def one_infinite(tensor: Tensor) -> Tensor:
    changed = tensor.clone().contiguous()
    changed.view(-1)[-1] = -torch.inf
    return changed


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "an element less": lambda tensor: tensor.flatten()[:-1] if tensor.dim() else tensor[None],
    "a dimension more": lambda tensor: tensor[None],
    "empty": lambda tensor: tensor.new_empty(0),
    "float64": lambda tensor: tensor.double(),
    "float16": lambda tensor: tensor.half(),
    "integers": lambda tensor: tensor.to(torch.int64),
    "bytes": lambda tensor: tensor.to(torch.uint8),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "nan": lambda tensor: torch.full_like(tensor, torch.nan),
    "inf": lambda tensor: torch.full_like(tensor, torch.inf),
    "-inf in one place": one_infinite,
}


@with_tensors
@pytest.mark.parametrize("wrong", WRONG)
def test_each_tensor_of_another_shape_type_or_not_finite_is_refused_by_name(action: Action, wrong: str) -> None:
    report = right(action)
    assert report.weights
    for name, tensor in report.weights.items():
        message = refused(action, replace(report, weights={**report.weights, name: WRONG[wrong](tensor)}))
        assert f"tensor {name!r}" in message


@every_action
@pytest.mark.parametrize("name", ["patient_age", "accuracy", "clas_counts"])
def test_an_undeclared_number_is_refused_by_name(action: Action, name: str) -> None:
    assert f"unknown number {name!r}" in refused(action, with_numbers(right(action), **{name: 1.0}))


@every_action
def test_a_number_of_another_action_is_refused(action: Action) -> None:
    foreign = {name for names in NUMBERS.values() for name in names} - NUMBERS[action]
    assert foreign
    for name in foreign:
        assert f"unknown number {name!r}" in refused(action, with_numbers(right(action), **{name: 1.0}))


@every_action
def test_each_missing_number_is_refused_by_name(action: Action) -> None:
    report = right(action)
    for name in report.numbers:
        left = {other: value for other, value in report.numbers.items() if other != name}
        assert refused(action, replace(report, numbers=left)) == f"the number {name!r} is missing."


@every_action
def test_numbers_are_single_and_finite_or_lists_of_the_right_length(action: Action) -> None:
    report = right(action)
    for name, value in report.numbers.items():
        wrong: list[Any] = [[1], [], [1] * CLASSES, float("nan"), float("inf"), float("-inf")]
        if isinstance(value, list):
            wrong = [1.0, [], value[1:], [*value, 1], [-1, *value[1:]]]
        for other in wrong:
            assert f"number {name!r}" in refused(action, with_numbers(report, **{name: other}))


@with_tensors
def test_tensors_learnt_from_no_sample_are_refused(action: Action) -> None:
    """They would be averaged with weight zero, and with no other site's the average is 0 / 0."""
    assert "without samples" in refused(action, with_numbers(right(action), class_counts=[0] * CLASSES))


@given(st.data())
def test_whatever_is_changed_in_a_report_is_refused(data: st.DataObject) -> None:
    """One tensor or number renamed to anything else."""
    action = data.draw(st.sampled_from(Action))
    report = right(action)
    kind = data.draw(st.sampled_from(("weights", "numbers") if report.weights else ("numbers",)))
    content = dict(getattr(report, kind))
    name = data.draw(st.sampled_from(sorted(content)))
    other = data.draw(st.text().filter(lambda text: text not in content))
    content[other] = content.pop(name)
    refused(action, replace(report, **{kind: content}))


@pytest.mark.parametrize("method", ALL_METHODS)
def test_the_frozen_backbone_never_travels_and_counters_never_do(method: str) -> None:
    own = Experiment(small_config(method))
    grown = own.build_model(1)
    for step in own.steps:
        up = names_up(grown, step.stage)
        assert not any("num_batches_tracked" in name for name in up)
        trained = step.stage.action is Action.FIT and step.stage.name != "balance"  # where heads alone are trained
        backbone = [name for name in up if ".backbone." in name]
        assert bool(backbone) == (not own.method.freezes_backbone and trained)


def test_bytes_are_those_of_the_tensors() -> None:
    weights = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float64)}
    assert tensor_bytes(weights) == Report(False, weights).bytes == 3 * 4 * 4 + 5 * 8
    assert Report(abstained=True).bytes == 0


def test_counts_of_classes_not_learnt_yet_or_beyond_all_images_are_refused() -> None:
    stage = stage_of(Action.EVALUATE)
    numbers = {**right(Action.EVALUATE).numbers, **tables_of([3] + [0] * (CLASSES - 1))}
    check_report(Report(False, {}, numbers), stage, model(), CLASSES, seen=[0])
    with pytest.raises(ProtocolError, match="not learnt yet"):
        check_report(Report(False, {}, numbers), stage, model(), CLASSES, seen=[1])
    with pytest.raises(ProtocolError, match="'confusion' is not a list of"):
        check_report(
            Report(False, {}, {**numbers, "confusion": [10**13] + [0] * (CLASSES**2 - 1)}), stage, model(), CLASSES
        )


# --- the exchanges of secure aggregation

SHAPES: dict[Phase, tuple[torch.dtype, tuple[int, ...]]] = {
    # 2 keys of 32 bytes; 2 shares of 33 bytes and a tag of 16, for each of 4 sites; 7 numbers; a share for each site
    Phase.KEYS: (torch.uint8, (OFFER_BYTES,)),
    Phase.SHARES: (torch.uint8, (4, 82)),
    Phase.MASKED: (torch.int64, (7,)),
    Phase.OPEN: (torch.uint8, (4, 33)),
}
every_phase = pytest.mark.parametrize("phase", Phase)


def right_phase(phase: Phase) -> Report:
    dtype, shape = SHAPES[phase]
    numbers: dict[str, float | list[int]] = {"seconds": 1.0} if phase is Phase.MASKED else {}
    return Report(False, {PHASE_UP[phase]: torch.zeros(shape, dtype=dtype)}, numbers)


def refused_phase(phase: Phase, report: Report) -> str:
    with pytest.raises(ProtocolError) as caught:
        check_phase(report, phase, 4, 7)
    return str(caught.value)


@every_phase
def test_the_declared_answer_of_an_exchange_is_accepted_and_no_other(phase: Phase) -> None:
    report, name = right_phase(phase), PHASE_UP[phase]
    check_phase(report, phase, 4, 7)
    tensor = report.weights[name]
    for wrong in (tensor[1:], tensor[None], tensor.float(), tensor.to(torch.int32), tensor.new_empty(0)):
        assert f"tensor {name!r}" in refused_phase(phase, replace(report, weights={name: wrong}))
    assert "is missing" in refused_phase(phase, replace(report, weights={}))
    for other in ("heads.task0.weight", *(set(PHASE_UP.values()) - {name})):
        assert f"unknown tensor {other!r}" in refused_phase(
            phase, replace(report, weights={**report.weights, other: torch.zeros(3)})
        )
    for number in ("class_counts", "loss", "confusion", "memory_bytes"):
        assert "unknown number" in refused_phase(phase, with_numbers(report, **{number: 1.0}))
    assert "abstained openly" in refused_phase(phase, replace(report, abstained=True))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, [1]])
def test_the_seconds_of_a_masked_answer_are_one_number(seconds: Any) -> None:
    assert "'seconds'" in refused_phase(Phase.MASKED, with_numbers(right_phase(Phase.MASKED), seconds=seconds))
    assert "missing" in refused_phase(Phase.MASKED, replace(right_phase(Phase.MASKED), numbers={}))


def test_of_what_is_not_summed_only_the_seconds_leave() -> None:
    report = Report(False, {}, {"seconds": 1.0})
    check_report(report, stage_of(Action.REMEMBER), model(), CLASSES, secure=True)
    with pytest.raises(ProtocolError, match="unknown number"):
        check_report(right(Action.REMEMBER), stage_of(Action.REMEMBER), model(), CLASSES, secure=True)
    assert set(SUMMED) == set(Action) - {Action.REMEMBER, Action.FORGET}  # sums that are hidden are not corrected
    assert all("seconds" not in names for names in SUMMED.values())


# --- on the wire


def opened(report: Report, codec: str) -> Report:
    sent = {name: tensor + 1 for name, tensor in right(Action.FIT).weights.items()}
    return opened_report(report, stage_of(Action.FIT), model(), CLASSES, codec=CODECS[codec], sent=sent)


def on_the_wire(codec: str) -> Report:
    report = right(Action.FIT)
    sent = {name: tensor + 1 for name, tensor in report.weights.items()}
    return replace(report, weights=pack(CODECS[codec], report.weights, sent))


@pytest.mark.parametrize("codec", CODECS)
def test_a_packed_report_is_opened(codec: str) -> None:
    report = opened(on_the_wire(codec), codec)
    for name, tensor in right(Action.FIT).weights.items():
        assert torch.allclose(report.weights[name], tensor, atol=2e-2)
        assert torch.equal(report.weights[name], tensor) or codec != "none"


FORMS = {"none": "float32", "float16": "float16", "int8": "int8", "int8_both": "int8"}
"""In what sites answer under each compression."""


@pytest.mark.parametrize("packed", CODECS)
@pytest.mark.parametrize("declared", CODECS)
def test_no_other_form_than_the_declared_one_is_opened(packed: str, declared: str) -> None:
    if FORMS[packed] == FORMS[declared]:
        return
    with pytest.raises(ProtocolError):
        opened(on_the_wire(packed), declared)


@pytest.mark.parametrize(
    "change",
    [
        lambda wire: {**wire, "heads.auxiliary.weight:scale": wire["heads.auxiliary.weight:scale"][:-1]},
        lambda wire: {**wire, "heads.auxiliary.weight:scale": wire["heads.auxiliary.weight:scale"] * torch.nan},
        lambda wire: {**wire, "heads.auxiliary.weight": wire["heads.auxiliary.weight"].to(torch.int16)},
        lambda wire: {**wire, "heads.auxiliary.weight:other": wire["heads.auxiliary.weight"]},
        lambda wire: {name: part for name, part in wire.items() if name != "heads.auxiliary.weight:scale"},
    ],
    ids=["rows", "nan", "int16", "undeclared", "missing"],
)
def test_integers_travel_in_the_declared_form_alone(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    report = on_the_wire("int8")
    with pytest.raises(ProtocolError):
        opened(replace(report, weights=change(dict(report.weights))), "int8")


def test_extremes_are_those_of_each_tensor_by_itself() -> None:
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        "weight": torch.randn(4, 3, 3, 3, generator=drawn).contiguous(memory_format=torch.channels_last),
        "none": torch.empty(0, 5),
        "sum": torch.randn(2, generator=drawn, dtype=torch.float64) * 1e300,
        "half": torch.tensor([-2.0, 6e4], dtype=torch.float16),
        "count": torch.tensor(7),
        "infinite": torch.tensor([1.0, -math.inf]),
        "large": torch.randn(TOGETHER + 1, generator=drawn),
    }
    found = extremes(tensors)
    assert found == {name: (t.min().item(), t.max().item()) for name, t in tensors.items() if t.numel()}


@pytest.mark.parametrize("size", [3, TOGETHER + 1])
def test_extremes_beside_a_nan_are_nan(size: int) -> None:
    tensors = {"before": torch.ones(2), "broken": torch.ones(size), "behind": torch.ones(2)}
    tensors["broken"][1] = math.nan
    found = extremes(tensors)
    assert math.isnan(found["broken"][0]) and math.isnan(found["broken"][1])
    assert found["before"] == found["behind"] == (1.0, 1.0)
