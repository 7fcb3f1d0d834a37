"""Error feedback: nothing is lost for good, and a step that is asked for twice advances it once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_runs import instruction, small_config, small_site, step_of
from torch import Tensor

from client.state.error_feedback import FILE, ErrorFeedback
from client.steps.parcels import packed
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.compression import CODECS, unpack
from dynammo_core.wire.protocol import Instruction, Report

ROUNDS = 8
EXPERIMENT = Experiment(small_config(overrides={"federation.compression": "int8", "method.balance.rounds": ROUNDS}))
STEPS = [step_of(EXPERIMENT, 0, "balance", round_) for round_ in range(ROUNDS)]
NAME = "heads.task0.weight"
A, B = {NAME: torch.ones(2, 2)}, {NAME: torch.full((2, 2), 2.0)}


def answer(folder: Path, round_: int, meant: Tensor) -> tuple[Report, Instruction]:
    """What travels of a weight in a round; the server sends zeros in every round."""
    sent = instruction(EXPERIMENT, STEPS[round_], 0, folder)
    sent.weights[NAME].zero_()
    return packed(Report(False, {NAME: meant}), sent, small_site(EXPERIMENT, 0, folder)), sent


def arriving(folder: Path, round_: int, meant: Tensor) -> Tensor:
    report, sent = answer(folder, round_, meant)
    return unpack(CODECS["int8"], report.weights, sent.weights)[NAME]


def meant_like() -> Tensor:
    """A row's small values are lost beside its large one: 0.003 is less than half of 1/127."""
    weight = instruction(EXPERIMENT, STEPS[0], 0, Path()).weights[NAME]
    meant = torch.full_like(weight, 0.003)
    meant[:, 0] = 1.0
    return meant


def test_what_rounding_loses_arrives_later(tmp_path: Path) -> None:
    meant = meant_like()
    arrived = [arriving(tmp_path, round_, meant) for round_ in range(ROUNDS)]
    assert float(arrived[0][0, 1]) == 0.0
    # What is owed after all rounds is at most half a step, 1/254, and not 8 times 0.003.
    assert float((sum(arrived) - ROUNDS * meant).abs().max()) < 1 / 254 + 1e-3
    assert float(sum(arrived)[0, 1]) > 0.015


def test_a_step_that_is_asked_for_twice_advances_it_once(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    meant = meant_like()
    for round_ in range(3):
        one = answer(once, round_, meant)[0]
        for _ in range(3):
            again = answer(twice, round_, meant)[0]
            assert all(torch.equal(again.weights[name], tensor) for name, tensor in one.weights.items())
    assert [torch.equal(arriving(once, 3, meant), arriving(twice, 3, meant))] == [True]


def test_it_is_that_of_its_stage_and_of_no_step_to_come(tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path)
    assert feedback.before(STEPS[1]) == {}
    feedback.keep(STEPS[1], A, B)
    for step, expected in ((STEPS[1], A), (STEPS[2], B), (STEPS[5], B)):  # a site may miss rounds
        assert torch.equal(feedback.before(step)[NAME], expected[NAME])
    assert feedback.before(STEPS[0]) == {}
    for stage, task in (("adapt", 0), ("adapt", 1), ("balance", 1)):
        assert feedback.before(step_of(EXPERIMENT, task, stage)) == {}


def test_a_check_between_the_rounds_loses_nothing(tmp_path: Path) -> None:
    checked = Experiment(small_config(overrides={"method.balance.rounds": 2, "method.balance.keep": "best"}))
    first, second = (step_of(checked, 0, "balance", round_) for round_ in (0, 1))
    assert second.index == first.index + 2
    feedback = ErrorFeedback(tmp_path)
    feedback.keep(first, A, B)
    assert torch.equal(feedback.before(second)[NAME], B[NAME])
    assert feedback.before(step_of(checked, 1, "balance")) == {}


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_file_is_as_none(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    feedback = ErrorFeedback(tmp_path)
    feedback.keep(STEPS[1], A, B)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-2] ^= 64
    (tmp_path / FILE).write_bytes({"cut": content[:-4], "flipped": content, "text": b"patient"}[damage])
    assert feedback.before(STEPS[2]) == {}
    assert "is damaged" in caplog.text


def test_nothing_is_kept_where_nothing_is_rounded_so(tmp_path: Path) -> None:
    exact = Experiment(small_config(overrides={"federation.compression": "float16"}))
    step = step_of(exact, 0, "adapt")
    sent = instruction(exact, step, 0, tmp_path)
    packed(Report(False, dict(sent.weights)), sent, small_site(exact, 0, tmp_path))
    assert not list(tmp_path.rglob(FILE))


def test_a_value_too_large_for_half_precision_does_not_leave(tmp_path: Path) -> None:
    exact = Experiment(small_config(overrides={"federation.compression": "float16"}))
    sent = instruction(exact, step_of(exact, 0, "adapt"), 0, tmp_path)
    with pytest.raises(ProtocolError, match=r"torch\.float16 cannot represent"):
        packed(Report(False, {"w": torch.tensor([70_000.0])}), sent, small_site(exact, 0, tmp_path))
