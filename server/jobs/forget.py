"""Remove withdrawn records from a run: sites correct its sums, and its model is solved and tested again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from dynammo_core.configuration.config import Config
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.report_contents import heads_by_prefix
from server.report.report import write_report
from server.run.answers import Answers
from server.run.exchange import Exchange
from server.run.results import pooled, write_model, write_results
from server.run.task_loop import TaskLoop
from server.run_directory.deployed import deployed_task
from server.run_directory.directory import RunDirectory
from server.run_directory.lock import only_run


class Correction(TaskLoop):
    """The task loop of a paused run, for one exchange outside its plan."""

    def correct(self) -> Answers:
        """Have every site take withdrawn records out of the archive's sums, and solve again; saved on return.

        Raises:
            RunError: the method keeps no sums, no site answers, or the run went on meanwhile.
        """
        stands = self.progress.next_step, self.progress.corrections
        step = self.experiment.step(stands[0] - 1, stands[1] + 1)
        answers = self._ask_beside(step)
        saved, _, _ = self.checkpoints.load()
        if (saved.next_step, saved.corrections) != stands:
            raise RunError(
                "the run has moved on meanwhile, so nothing was forgotten", remedy="Ask again when it has ended"
            )
        if not all(report.abstained for report in answers.reports.values()):
            self._take_in(step, answers)
            step.stage.finish(self.model, self.archive, step.task)
            self._require_sums(answers)
            self.progress.corrections = step.round
            self.progress.bytes_up += answers.bytes_up.total()
            self._save()
        return answers

    def _require_sums(self, answers: Answers) -> None:
        """Refuse a correction that takes out what was never in, before any of it is saved."""
        weights = {site: report.weights for site, report in answers.reports.items() if not report.abstained}
        for prefix, head in heads_by_prefix(self.model).items():
            names = [f"{prefix}{name}" for name in head.summed_tensors]
            taken = {
                name.removeprefix(prefix): -torch.stack([tensors[name] for tensors in weights.values()]).sum(dim=0)
                for name in names
            }
            if taken and (obstacle := head.obstacle_to_rest(taken)):
                label = self.experiment.config.federation.site_label
                named = ", ".join(map(label, weights))
                raise RunError(
                    f"the sums {prefix}* would no longer describe any images ({obstacle}), so nothing was forgotten: "
                    f"one of these sites subtracted what it never sent: {named}",
                    remedy="To find out which, ask each of them alone, with the others disconnected",
                )

    def test_again(self) -> None:
        """Replace the model after the last finished task, its tests and the results with new ones."""
        task, answers = self.evaluate()
        self.progress.confusion.pop()
        self._take_in(self.experiment.steps[self.progress.next_step - 1], answers)
        status = "completed" if self.progress.next_step == len(self.experiment.steps) else "running"
        summary = write_results(self.directory, self.experiment, self.model, self.progress, status=status)
        deploy = deployed_task(self.directory) in (None, task)
        write_model(self.directory, self.experiment, self.model, task, pooled(answers), summary, deploy=deploy)
        self._save()


def forget_run(grid: Grid, config: Config[Any], run: Path, output: Path) -> None:
    """Correct the sums of a paused run, and write as JSON which sites took part; repeating it is harmless.

    A run in the middle of a task is corrected too; its next model is the first without the records.

    Raises:
        CheckpointError: the run has no checkpoint, or one of another experiment.
        RunError: the method does not keep sums, no site answers, or the run is in progress.
    """
    with only_run(run):
        directory = RunDirectory(run)
        loop = Correction(Experiment(config), Exchange(grid, config.federation), directory)
        loop.load()
        answers = loop.correct()
        corrected = [site for site, report in answers.reports.items() if not report.abstained]
        directory.log(
            "forgotten",
            correction=loop.progress.corrections,
            answered=len(answers.reports),
            corrected=len(corrected),
            failures=[vars(failure) for failure in answers.failures],
        )
        # Even if nothing was corrected: an earlier attempt may have been interrupted before this point.
        if loop.stands_after_task:
            loop.test_again()
            write_report(run)
    label = config.federation.site_label
    result = {
        "corrected": [label(site) for site in corrected],
        "nothing_to_correct": [label(site) for site in answers.reports if site not in corrected],
        "failures": {label(failure.site): f"{failure.error}, code {failure.code}" for failure in answers.failures},
        "model_written": loop.stands_after_task,
    }
    write_atomically(output, json.dumps(result, indent=2).encode() + b"\n")
