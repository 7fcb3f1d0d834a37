"""One message of one site, by the site's own code: what the server sent, what it got, and the images behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from client.hospital.site_opening import simulated_site
from client.steps.actions import answer
from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.data.samples import FEWEST_SAMPLES, Samples
from dynammo_core.experiment import Experiment, experiment_from_json
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, travelling_names
from dynammo_core.plan import LearningStage, Stage, Step
from dynammo_core.support.seeding import seeded_initialisation
from dynammo_core.wire.protocol import Instruction, Report

RUN = "audit-message"


@dataclass(frozen=True)
class SiteMessage:
    """A message of the first task.

    Attributes:
        experiment: what the site takes part in.
        step: what it was asked.
        site: which one it is.
        sent: the tensors that it was sent.
        report: its answer, as it leaves the site.
        images: what the answer was made from; the server does not have them.
    """

    experiment: Experiment
    step: Step
    site: int
    sent: Mapping[str, Tensor]
    report: Report
    images: Samples

    def model(self) -> IncrementalModel:
        """Return the network with the tensors that were sent, as the server can build it."""
        model = self.experiment.build_model(self.step.task)
        model.load_state_dict(dict(self.sent), strict=False)
        return model.to(self.experiment.device)


def first_step(experiment: Experiment, matches: Callable[[Stage], bool]) -> Step | None:
    """Return the first step of the run whose stage is as wanted, if it belongs to the first task."""
    return next((step for step in experiment.steps if step.task == 0 and matches(step.stage)), None)


def ask_sites(experiment: Experiment, step: Step) -> list[SiteMessage]:
    """Ask all sites for their answer in a step of the first task; return the messages of those that do not abstain."""
    model = experiment.new_model()
    with seeded_initialisation(experiment.config.seed, "grow", step.task):
        experiment.method.begin_task(model, {}, step.task)
    state = model.state_dict()
    sent = {name: state[name].clone() for name in matching(travelling_names(model), step.stage.down)}
    text, messages = experiment.config.canonical_json(), []
    with TemporaryDirectory(prefix="dynammo-sites-") as folder:
        for index in range(experiment.config.federation.sites):
            site = simulated_site(experiment, index, Path(folder), RUN)
            code = code_hash(experiment.config)
            report = answer(Instruction(text, code, RUN, step.index, index, folder, sent), site)
            if not report.abstained:
                assert isinstance(step.stage, LearningStage)
                images = step.stage.learns_from(site.rehearsal(step.task))
                messages.append(SiteMessage(experiment, step, index, sent, report, images))
    return messages


def easiest(messages: list[SiteMessage]) -> SiteMessage:
    """Return the message that rests on the fewest images."""
    return min(messages, key=lambda message: len(message.images))


def tiny(experiment: Experiment) -> Experiment:
    """Return the experiment as an attacker would wish it: one site, the fewest images that it answers for, one step.

    The images are one of each of the first classes of the run, and stages that train take one step of plain descent.
    """
    config = experiment.config
    stages = [name for name, value in config.method if isinstance(value, Optimisation)]
    classes = [label for task in experiment.stream.tasks for label in task][:FEWEST_SAMPLES]
    settings = config.model_dump(mode="json")
    settings["data"] |= {"train_per_class": 1, "augmentation": "none"}
    settings["tasks"] = {"sizes": [len(classes)], "class_order": classes}
    settings["federation"] |= {"sites": 1, "partition": "iid", "aggregator": "mean"}
    for name in stages:
        settings["method"][name] |= {"rounds": 1, "epochs": 1, "optimizer": "sgd", "schedule": "constant"}
    return experiment_from_json(type(config).model_validate(settings).canonical_json())


def some_labels(images: Samples, most: int) -> Tensor:
    """Return the ascending labels of at most so many images, in the proportions of the classes."""
    labels = images.labels.sort().values
    return labels[torch.linspace(0, len(labels) - 1, min(most, len(labels))).round().long()]
