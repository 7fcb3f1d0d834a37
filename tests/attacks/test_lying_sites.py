"""One site lies on the wire: the server refuses what no images could give, and goes on with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from safetensors.torch import load_file
from small_runs import events, run_small, small_config

from client.app import app
from dynammo_core.configuration.config import Scalar
from dynammo_core.models.ridge.gram import pack, unpack
from dynammo_core.support.errors import ProtocolError, RunError
from simulations.engines.local_grid import LocalGrid

SITES, LIAR = 4, 2
ALIKE: Mapping[str, Scalar] = {"federation.sites": SITES, "federation.partition": "iid", "federation.quorum": 0.75}
Lie = Callable[[RecordDict], RecordDict]
Where = tuple[str, str, dict[str, Scalar]]
"""Method, stage, and what is set beside."""


# --- lies


def say(**numbers: Callable[[Any], Any]) -> Lie:
    """Numbers that are made of the true ones."""

    def lie(answer: RecordDict) -> RecordDict:
        true = dict(answer.metric_records["numbers"])
        told = {**true, **{name: change(true[name]) for name, change in numbers.items()}}
        return RecordDict({**answer, "numbers": MetricRecord(told)})

    return lie


def send(end: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Lie:
    """Other tensors in place of those whose names end so."""

    def lie(answer: RecordDict) -> RecordDict:
        true = {name: array.numpy().copy() for name, array in answer.array_records["weights"].items()}
        assert any(name.endswith(end) for name in true)
        told = {name: (change(t) if name.endswith(end) else t).astype(t.dtype) for name, t in true.items()}
        return RecordDict({**answer, "weights": ArrayRecord({name: Array(t) for name, t in told.items()})})

    return lie


def at(place: int, value: float) -> Callable[[Any], Any]:
    """Something else in one place."""

    def change(values: Any) -> Any:
        changed = values.copy()
        (changed if isinstance(changed, list) else changed.reshape(-1))[place] = value
        return changed

    return change


def everywhere(value: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda tensor: np.full_like(tensor, value)


def gram(change: Callable[[torch.Tensor], None]) -> Lie:
    """Another Gram matrix, Tensor[N, N], of the features and the 1 behind them."""

    def changed(packed: NDArray[Any]) -> NDArray[Any]:
        size = math.isqrt(2 * len(packed))
        matrix = unpack(torch.from_numpy(packed.copy()), size)
        change(matrix)
        return pack(matrix).numpy()

    return send(".gram", changed)


def other_way(matrix: torch.Tensor) -> None:
    """What lies across the mean, negative; all sums over samples are as they were."""
    mean = matrix[-1, :-1] / matrix[-1, -1]
    across = matrix[:-1, :-1] - matrix[-1, -1] * torch.outer(mean, mean)
    matrix[:-1, :-1] -= 2 * across


def beyond_its_diagonal(matrix: torch.Tensor) -> None:
    matrix[0, 1] = matrix[1, 0] = 2 * float((matrix[0, 0] * matrix[1, 1]).sqrt()) + 1


def apart(products: NDArray[Any]) -> NDArray[Any]:
    """Two classes pulled apart; what they add up to stays."""
    one, other = np.flatnonzero(products[:, -1])
    change = 10 * np.abs(products[one, :-1])
    products[one, :-1] += change
    products[other, :-1] -= change
    return products


def times_of_classes(times: float) -> Lie:
    """As many times the samples, in everything that says how many."""

    def lie(answer: RecordDict) -> RecordDict:
        answer = say(class_counts=lambda counts: [int(times * count) for count in counts])(answer)
        for name in ("counts", "gram", "products"):
            answer = send(f".{name}", lambda tensor: times * tensor)(answer)
        return answer

    return lie


FIT: Where = ("dynammo", "adapt", {})
RECALIBRATED: Where = ("dynammo", "recalibrate", {})
KEPT: Where = ("dynammo", "remember", {})
MANY: Mapping[str, Scalar] = {"method.multi_scale": False, "data.train_per_class": 80}  # no thin factor is shorter
STREAMED: Where = ("streaming_ridge", "sum", MANY)
THIN: Where = ("streaming_ridge", "sum", {})
TESTED: Where = ("streaming_ridge", "evaluate", {})
COUNTED: Where = ("ridge", "count", {})
BALANCED: Where = ("ridge", "sum", MANY)
FISHER: Where = ("dynammo", "fisher", {"method.merge": "fisher"})
MEANS: Where = ("icarl", "means", {})
NOISED: Where = (
    "streaming_ridge",
    "sum",
    {"privacy.mechanism": "example", "privacy.epsilon": 1000.0},
)

LIES: Mapping[str, tuple[Where, Mapping[str, Lie]]] = {
    "fit": (
        FIT,
        {
            "a trillion samples": say(class_counts=at(0, 10**12)),
            "more samples than a site has": say(class_counts=at(0, 1_000_100)),
            "more samples than a site has, of two classes": say(class_counts=lambda _: [600_000, 600_000] + 8 * [0]),
            "a negative number of samples": say(class_counts=at(1, -5)),
            "samples of a class that is not learnt yet": say(class_counts=at(9, 3)),
            "a variance below 0": send("running_var", at(0, -5.0)),
            "weights beyond all measure": send("weight", everywhere(1e30)),
            "weights of 100,000": send("bias", at(0, -1e5)),
        },
    ),
    "kept": (
        KEPT,
        {
            "exemplars of a class that is not learnt yet": say(class_counts=at(9, 3)),
            "a memory of less than nothing": say(memory_bytes=lambda _: -1.0),
        },
    ),
    "recalibrated": (
        RECALIBRATED,
        {
            "a variance below 0, counted again": send("running_var", at(0, -5.0)),
        },
    ),
    "fisher": (
        FISHER,
        {
            "squares below 0": send("weight", at(0, -1.0)),
        },
    ),
    "means": (
        MEANS,
        {
            "a mean of unit features that is long": send("means.weight", everywhere(1.0)),
        },
    ),
    "streamed": (
        STREAMED,
        {
            "sums of a class that is not learnt yet": say(class_counts=at(9, 3)),
            "other counts than it says": send(".counts", lambda counts: counts + 1),
            "a Gram matrix of -1": send(".gram", everywhere(-1.0)),
            "a Gram matrix of 1e300": send(".gram", everywhere(1e300)),
            "a Gram matrix of 1e300 but for the counts": gram(lambda m: m[:-1, :-1].mul_(1e300)),
            "a Gram matrix of nothing": send(".gram", everywhere(0.0)),
            "a Gram matrix beyond its diagonal": gram(beyond_its_diagonal),
            "a Gram matrix turned about its mean": gram(other_way),
            "more samples in the Gram matrix than it says": gram(lambda m: m.mul_(1000)),
            "products that do not add up": send(".products", lambda p: at(3, 7.0)(p)),
            "classes farther apart than all samples": send(".products", apart),
            "sums of a billion samples, all alike": times_of_classes(1e8),
        },
    ),
    "thin": (
        THIN,
        {
            "a factor of 1e300": send(".gram", everywhere(1e300)),
            "a factor that is not finite": send(".gram", at(0, math.nan)),
            "features of a million": send(".gram", everywhere(1e6)),
            "a factor of more images": send(".gram", lambda factor: np.concatenate([factor, factor[:1]])),
            "a triangle in place of a factor": send(".gram", lambda factor: np.zeros(121 * 122 // 2)),
            "products of -1": send(".products", everywhere(-1.0)),
            "counts of a tenth": send(".counts", lambda counts: counts / 10),
            "other numbers of images than it says": say(class_counts=lambda counts: [2 * n for n in counts]),
        },
    ),
    "counted": (
        COUNTED,
        {
            "counts that it does not say": send(".counts", lambda counts: 1000 * counts),
        },
    ),
    "balanced": (
        BALANCED,
        {
            "a Gram matrix of -1, weighted": send(".gram", everywhere(-1.0)),
        },
    ),
    "noised": (
        NOISED,
        {
            "a noised Gram matrix of 1e300": send(".gram", everywhere(1e300)),
            "a noised Gram matrix of -1": send(".gram", everywhere(-1.0)),
            "noised counts of another class": say(class_counts=at(9, 3)),
            "epsilon below 0": say(epsilon=lambda _: -3.0),
        },
    ),
    "tested": (
        TESTED,
        {
            "tests of a class that is not learnt yet": say(class_counts=at(9, 3)),
            "answers of a class that is not learnt yet": say(confusion=lambda _: [9, 3]),
            "more tests than it says": say(confusion=at(1, 400)),
            "more tests than a site has": say(open_set=at(255, 10**7)),
            "more right answers than tests": say(calibration=at(15, 400)),
            "scores of other images": say(open_set=at(0, 400)),
        },
    ),
}


# --- runs


def grid_of(where: Where, lies: Sequence[Lie | None], told: dict[int, int]) -> LocalGrid:
    """Sites of which one tells these lies in each step of a stage, one an answer, and then the truth; None: it fails.

    `told` counts its answers by step.
    """

    def handle(message: Message, context: Context) -> Message:
        reply = app(message, context)
        instruction = message.content.config_records["instruction"]
        if instruction["site"] != LIAR or f"/{where[1]}/" not in message.metadata.group_id:
            return reply
        assert not reply.has_error()
        step = int(str(instruction["step"]))
        told[step] = told.get(step, 0) + 1
        if told[step] <= len(lies):
            lie = lies[told[step] - 1]
            if lie is None:
                return Message(Error(102, "DataError"), reply_to=message)
            reply.content = lie(reply.content)
        return reply

    return LocalGrid(handle, nodes=SITES, run_config={})  # type: ignore[arg-type]


def run_with(
    folder: Path, where: Where, lies: Sequence[Lie | None] = (), **federation: Scalar
) -> tuple[Path, dict[int, int]]:
    """A run of these sites, and how often the liar answered in each step of the stage."""
    own = {f"federation.{name}": value for name, value in federation.items()}
    told: dict[int, int] = {}
    config = small_config(where[0], {**ALIKE, **where[2], **own})
    return run_small(config, folder, grid=grid_of(where, lies, told)).path, told


def same_model(run: Path, other: Path) -> None:
    model, wanted = (load_file(path / "model.safetensors") for path in (run, other))
    assert model.keys() == wanted.keys()
    for name, tensor in model.items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor, wanted[name]), name


REFUSED = {"site": LIAR, "code": ProtocolError.code, "error": "ProtocolError"}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Where], Path]:
    """The run of a method with its settings in which nobody lies, made once."""
    made: dict[str, Path] = {}

    def run(where: Where) -> Path:
        method, _, settings = where
        key = f"{method} {sorted(settings.items())}"
        if key not in made:
            made[key], _ = run_with(tmp_path_factory.mktemp("honest"), where)
        return made[key]

    return run


@pytest.mark.parametrize("kind", LIES)
def test_every_lie_is_refused_and_the_truth_is_taken(
    tmp_path: Path, honest: Callable[[Where], Path], kind: str
) -> None:
    """Asked again after each of its lies, a site at last tells the truth: the model is that of a run without lies."""
    where, lies = LIES[kind]
    run, told = run_with(tmp_path / "lies", where, list(lies.values()), attempts=len(lies) + 1)
    asked = [event for event in events(run, "asking_again") if event["step"] == min(told)]
    assert len(asked) == len(lies), f"not refused: {[*lies, ''][len(asked)]}"
    assert all(event["failures"] == [REFUSED] for event in asked)
    assert set(told.values()) == {len(lies) + 1}
    truth = honest(where)
    same_model(run, truth)
    confusion = "confusion_matrix.csv"
    assert (run / confusion).read_bytes() == (truth / confusion).read_bytes()


@pytest.mark.parametrize(("where", "lie"), [(FIT, "a variance below 0"), (STREAMED, "a Gram matrix of -1")])
def test_the_run_goes_on_without_a_site_that_only_lies(tmp_path: Path, where: Where, lie: str) -> None:
    """The model is that of a run in which the liar fails in these steps, and the event log says who was refused."""
    told_as = next(lies[lie] for place, lies in LIES.values() if place is where)
    run, steps = run_with(tmp_path / "lies", where, [told_as])
    assert steps
    for event in events(run, "step_finished"):
        assert event["failures"] == ([REFUSED] if event["step"] in steps else [])
    fails, _ = run_with(tmp_path / "fails", where, [None])
    same_model(run, fails)


def test_without_a_quorum_of_honest_answers_the_run_stops_and_says_who(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=rf"3 of 4 sites answered, 4 are needed; failed: site {LIAR} \(ProtocolError"):
        run_with(tmp_path, FIT, [say(class_counts=at(0, 10**12))], quorum=1.0)
