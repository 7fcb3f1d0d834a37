"""A server that wants the noise away: by what it sends, by what it names privacy, and by asking again and again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from hospitals import Hospitals, deployed, make_hospital, with_images
from small_runs import records, small_config, step_of

from client.consent.policy import Policy, violations
from client.consent.settings import load_site
from client.hospital.hospital import Hospital, Request
from client.state.privacy_budget import PrivacyBudget
from client.state.privacy_ledger import LedgerFile, SiteLedger, total_epsilon
from client.steps.actions import answer
from client.steps.site import Site
from dynammo_core.code_identity import project_hash
from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import Summarise
from dynammo_core.privacy.accounting import Charge
from dynammo_core.support.errors import ConfigError, ProtocolError
from dynammo_core.wire.protocol import Instruction

CLASSES = ["0", "1", "2", "3"]
HELD = {"0": 9, "1": 9, "2": 9, "3": 9}
PRIVACY = {"mechanism": "example", "epsilon": 8.0, "feature_norm": 10.0, "noise_multiplier": 4.0}
WEIGHTS = "heads.classes.sample_weight"


@pytest.fixture
def alpha(tmp_path: Path) -> Path:
    return make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))


def private(method: str = "ridge", classes: list[str] = CLASSES, **privacy: Any) -> Config[Any]:
    return deployed(["alpha"], classes, method, {"privacy": {**PRIVACY, **privacy}})


def asked(config: Config[Any], run: str, stage: str = "sum", **sent: Any) -> Instruction:
    """The first task's sum, or another stage of it, with weights of the server's choice."""
    experiment = Experiment(config)
    step = step_of(experiment, 0, stage)
    state = experiment.build_model(0).state_dict()
    weights = {
        name: state[name].clone() for name in matching(travelling_names(experiment.build_model(0)), step.stage.down)
    }
    weights |= {WEIGHTS: torch.tensor(sent["weights"], dtype=torch.float64)} if sent else {}
    return Instruction(config.canonical_json(), project_hash(), run, step.index, 0, "/", weights)


def opened(file: Path, instruction: Instruction) -> Site:
    return Hospital(file).open(Request(instruction, {}))


def limit(file: Path, **policy: Any) -> None:
    (file.parent / "policy.yaml").write_text(json.dumps({"fewest_images": 1, **policy}))


@pytest.mark.parametrize(
    "weights",
    [[-1.0, 0.0], [0.0, 0.0], [1e-300, 1e-300], [1.0, 1e-300], [float("nan"), 1.0], [1e300, 1.0], [1.0, float("inf")],
     [2.0, 1.0], [-5.0, 1.0]],
)  # fmt: skip
def test_no_weights_of_the_server_take_the_noise_away(alpha: Path, weights: list[float]) -> None:
    grid = Hospitals({"alpha": alpha})
    (node,) = grid.get_node_ids()
    message = Message(
        records(asked(private(), "run-1", weights=weights)), dst_node_id=node, message_type="train.summarise"
    )
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error()
    assert "ProtocolError" in reply.error.reason
    log = (alpha.parent / "audit.jsonl").read_text()
    assert '"refused"' in log and '"answered"' not in log
    assert not SiteLedger(alpha.parent / "memory").read()  # refused before an image was looked at


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64, torch.bool])
def test_no_type_of_the_server_hides_what_is_infinite_in_the_network(alpha: Path, dtype: torch.dtype) -> None:
    """1e300 is finite, and infinite as a float32."""
    sections = {"privacy": {**PRIVACY, "noise_multiplier": 1.0}, "method": {"norm": "group"}}
    instruction = asked(deployed(["alpha"], CLASSES, "dynammo", sections), "run-1", stage="adapt")
    name = next(name for name, tensor in instruction.weights.items() if tensor.dtype is torch.float32)
    sent = torch.full(instruction.weights[name].shape, 1e300, dtype=torch.float64).to(dtype)
    instruction = replace(instruction, weights={**instruction.weights, name: sent})
    with pytest.raises(ProtocolError, match=re.escape(f"{name!r} is {dtype}")):
        answer(instruction, opened(alpha, instruction))


def test_the_noise_is_the_same_whatever_weights_are_received(alpha: Path) -> None:
    """Light weights shrink what is summed, and not what hides it."""
    rows = []
    for run, weight in enumerate([1.0, 1e-9]):
        instruction = asked(private(noise_multiplier=1000.0), f"run-{run}", weights=[weight, weight])
        rows.append(answer(instruction, opened(alpha, instruction)).weights["heads.classes.products"][:, :-1].std())
    assert rows[1] == pytest.approx(float(rows[0]), rel=0.5)


def test_honest_weights_are_answered(alpha: Path) -> None:
    instruction = asked(private(), "run-1", weights=[1.0, 0.25])
    assert not answer(instruction, opened(alpha, instruction)).abstained


def test_no_image_tells_of_itself_by_making_a_sum_infinite() -> None:
    experiment = Experiment(small_config("streaming_ridge", {"privacy.mechanism": "example"}))
    model = experiment.build_model(0)
    features = torch.zeros(3, model.feature_dim)
    features[1, 0] = float("inf")
    stage = step_of(experiment, 0, "sum").stage
    batches = [(features, torch.tensor([0, 1, 0]), torch.ones(3))]
    noise = lambda shape, _: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
    assert isinstance(stage, Summarise)
    sums = stage.computes_privately(model, batches, {0: 2, 1: 1}, noise)
    assert all(bool(tensor.isfinite().all()) for tensor in sums.values())


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"mechanism": "client"}, "the mechanism client is not among those allowed: example"),
        ({"delta": 0.999}, "delta 0.999 is more than 1e-05"),
        ({"delta": 1.1e-5}, "delta 1.1e-05 is more than 1e-05"),
    ],
)
def test_a_policy_is_not_satisfied_by_the_word_privacy(privacy: dict[str, Any], said: str) -> None:
    config = deployed(["alpha"], CLASSES, "dynammo", {"privacy": {**PRIVACY, **privacy}, "method": {"norm": "group"}})
    assert violations(Policy(most_epsilon=8.0), config) == [said]
    assert violations(Policy(most_epsilon=8.0, mechanisms=("example", "client"), most_delta=0.9999), config) == []
    assert violations(Policy(), config) == []


def test_twenty_runs_of_one_experiment_cost_no_more_than_the_hospital_allows(alpha: Path) -> None:
    limit(alpha, most_epsilon=8.0)
    answers = 0
    for number in range(20):
        instruction = asked(private("streaming_ridge", noise_multiplier=2.0), f"run-{number}")
        answers += not answer(instruction, opened(alpha, instruction)).abstained
    spent = total_epsilon(SiteLedger(alpha.parent / "memory").read(), 1e-5)
    assert 0 < answers < 20
    assert 4 < spent <= 8


def test_without_a_limit_all_runs_are_added_up_and_shown(alpha: Path) -> None:
    spent = []
    for number in range(3):
        instruction = asked(private("streaming_ridge"), f"run-{number}")
        site = opened(alpha, instruction)
        assert not answer(instruction, site).abstained
        assert site.budget is not None
        spent.append(site.budget.spent())
    assert spent == sorted(set(spent))
    assert "without a limit spent by all runs" in PrivacyBudget(load_site(alpha).memory.folder, Policy()).words()


def test_renumbered_classes_add_up_by_their_names(alpha: Path) -> None:
    for number, classes in enumerate([["0", "1", "2", "3"], ["3", "2", "1", "0"], ["2", "3", "0", "1"]]):
        instruction = asked(private("streaming_ridge", classes), f"run-{number}")
        assert not answer(instruction, opened(alpha, instruction)).abstained
    charges = SiteLedger(alpha.parent / "memory").read()
    runs = {name: {charge.run for charge in charges if name in charge.classes} for name in CLASSES}
    assert runs == {"0": {"run-0"}, "1": {"run-0"}, "2": {"run-1", "run-2"}, "3": {"run-1", "run-2"}}


def test_ledgers_of_earlier_runs_are_carried_over_once(alpha: Path) -> None:
    memory = load_site(alpha).memory.folder
    with LedgerFile(memory / "old-run").changing() as own:
        own.charges |= {str(n): Charge(n, "sum", 0, 2.0, 1.0, 1, (n // 2,)) for n in range(5)}
    assert [(c.run, c.steps, c.classes) for c in SiteLedger(memory).read()] == [("old-run", 2, ("*",))]
    before = total_epsilon(SiteLedger(memory).read(), 1e-5)
    instruction = asked(private("streaming_ridge"), "run-1")
    answer(instruction, opened(alpha, instruction))
    answer(instruction, opened(alpha, instruction))
    charges = SiteLedger(memory).read()
    assert [charge.steps for charge in charges if charge.run == "old-run"] == [2]
    assert total_epsilon(charges, 1e-5) > before


def test_exact_counts_do_not_enter_models_that_promise_to_hide_a_site() -> None:
    with pytest.raises(ConfigError, match=r"exact numbers of images.*method.merge other than weighted"):
        small_config("dynammo", {"privacy.mechanism": "client", "method.norm": "group", "method.merge": "weighted"})
    small_config("dynammo", {"privacy.mechanism": "example", "method.norm": "group", "method.merge": "weighted"})
