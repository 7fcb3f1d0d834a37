"""`dynammo-sim bench answers`: what it costs a site to record each answer, beside the step that makes it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from dynammo_core.experiment import Experiment

console = Terminal()
KEY = bytes(range(32))


@dataclass(frozen=True)
class RecordingCost:
    """What one answer costs: seconds of the step, of recording and of giving it again, and bytes."""

    stage: str
    step: float
    recorded: float
    again: float
    answer: int
    file: int


def answers(config: ConfigFile, set_: Overrides = None) -> None:
    """Measure how long it takes to record each encrypted answer of the first task, relative to its step."""
    with readable_errors():
        from dynammo_core.configuration.config import load_config
        from dynammo_core.experiment import Experiment

        settings = load_config(config, {**parse_overrides(set_ or []), "federation.sites": 1})
        costs = recorded_task(Experiment(settings))
        table = Table(
            "stage", "step, s", "recorded, ms", "of the step, %", "given again, ms", "answer, kB", "beside it, kB"
        )
        for cost in costs:
            table.add_row(
                cost.stage,
                f"{cost.step:.2f}",
                f"{1e3 * cost.recorded:.1f}",
                f"{100 * cost.recorded / cost.step:.2f}",
                f"{1e3 * cost.again:.1f}",
                f"{cost.answer / 1e3:.1f}",
                f"{(cost.file - cost.answer) / 1e3:.1f}",
            )
        console.print(table)
        share = sum(cost.recorded for cost in costs) / sum(cost.step for cost in costs)
        console.print(f"recording takes {100 * share:.2f} % of the first task's steps", highlight=False)


def recorded_task(experiment: Experiment) -> list[RecordingCost]:
    """Do the first task's steps at one site, and record and repeat each answer."""
    from client.consent.settings import SiteMemory
    from client.hospital.site_opening import simulated_site
    from client.state.answer_ledger import AnswerLedger, Question, unlimited
    from client.steps.actions import answer
    from dynammo_core.code_identity import code_hash
    from dynammo_core.models.names import matching, travelling_names
    from dynammo_core.wire.protocol import Instruction

    text, costs = experiment.config.canonical_json(), []
    with tempfile.TemporaryDirectory(prefix="dynammo-bench-") as folder:
        site = simulated_site(experiment, 0, Path(folder), "bench")
        ledger = AnswerLedger(Path(folder) / "ledger", SiteMemory(), run="bench", site="bench", key=KEY)
        for step in (step for step in experiment.steps if step.task == 0):
            model = experiment.build_model(0)
            state = model.state_dict()
            sent = {name: state[name] for name in matching(travelling_names(model), step.stage.down)}
            started = time.perf_counter()
            report = answer(Instruction(text, code_hash(experiment.config), "bench", step.index, 0, folder, sent), site)
            done = time.perf_counter()
            question = Question(step.index, 0, 0, "a" * 64, "b" * 64)
            ledger.once(question, lambda report=report: report, unlimited)  # type: ignore[misc]
            kept = time.perf_counter()
            ledger.once(question, lambda report=report: report, unlimited)  # type: ignore[misc]
            again = time.perf_counter()
            size = (ledger.folder / question.file).stat().st_size
            name = f"{step.stage.name} {step.round + 1}/{step.stage.rounds}"
            costs.append(RecordingCost(name, done - started, kept - done, again - kept, report.bytes, size))
    return costs
