"""What a run will cost each of its sites in privacy, known before it begins: the cost depends on no images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.base import Method
from dynammo_core.plan import Action, Fit, LearningStage, Step
from dynammo_core.privacy.accounting import Charge, compose, least_noise, site_epsilon
from dynammo_core.privacy.noise import steps_of_epoch
from dynammo_core.privacy.rehearsal import PrivateRehearsal, blank, evenly
from dynammo_core.support.errors import ConfigError

CENSUS = "census"


def charge_of(step: Step, method: Method[Any], noise_multiplier: float) -> Charge | None:
    """Return what a site's answer to a step costs beyond the census; None if it costs nothing.

    Each step of DP-SGD is a Poisson-subsampled Gaussian mechanism, sums are a plain one. The classes are those whose
    records the method takes into its training set.
    """
    settings, stage = method.privacy, step.stage
    if not isinstance(stage, LearningStage) or not stage.costs_privacy:
        return None
    rate, steps = 1.0, 1
    if isinstance(stage, Fit):
        rate, steps = settings.sampling_rate, stage.optimisation.epochs * steps_of_epoch(settings.sampling_rate)
    classes = classes_of_stage(stage, method.stream, step.task)
    return Charge(step.task, stage.name, step.round, noise_multiplier, rate, steps, classes, settings.unit)


def classes_of_stage(stage: LearningStage, stream: TaskStream, task: int) -> tuple[int, ...]:
    """List the classes that a stage's training set may hold, ascending, by offering it blank images of all classes."""
    labels = stage.learns_from(_all_classes(stream, task)).labels
    return tuple(sorted(set(labels.tolist())))


def census_charge(task: int, classes: tuple[int, ...], settings: PrivacySettings) -> Charge:
    """Return what a task's census costs, the noised numbers of new training images; one image or patient adds 1."""
    return Charge(task, CENSUS, 0, settings.count_noise, 1.0, 1, classes, settings.unit)


def example_charges(method: Method[Any], steps: Sequence[Step], noise_multiplier: float) -> list[Charge]:
    """List everything that each site is charged for in a run."""
    tasks = range(max(step.task for step in steps) + 1)
    charges = [census_charge(task, method.stream.classes(task), method.privacy) for task in tasks]
    found = (charge_of(step, method, noise_multiplier) for step in steps)
    return charges + [charge for charge in found if charge]


def client_charges(steps: Sequence[Step], noise_multiplier: float) -> list[Charge]:
    """List what the server charges for: one full-batch Gaussian mechanism for each round of training."""
    training = [step for step in steps if step.stage.action is Action.FIT]
    return [Charge(step.task, step.stage.name, step.round, noise_multiplier, 1.0, 1, ()) for step in training]


def noise_of_run(method: Method[Any], steps: Sequence[Step]) -> float:
    """Return the noise multiplier of a run's mechanisms except the census: as set, or the least the budget allows.

    Under `example` privacy a noise that is set may exceed the budget: each site checks that itself, and abstains.

    Raises:
        ConfigError: no noise keeps the run within the budget or, under `client` privacy, the noise that is set does
            not.
    """
    settings = method.privacy
    if settings.mechanism == "client":
        return _client_noise(steps, settings)
    if settings.noise_multiplier is not None:
        return settings.noise_multiplier
    return least_noise(
        lambda noise: site_epsilon(example_charges(method, steps, noise), settings.delta), settings.epsilon
    )


def _client_noise(steps: Sequence[Step], settings: PrivacySettings) -> float:
    def cost(noise: float) -> float:
        return compose(client_charges(steps, noise), settings.delta)

    noise = settings.noise_multiplier
    if noise is None:
        return least_noise(cost, settings.epsilon)
    if (spent := cost(noise)) > settings.epsilon:
        raise ConfigError(
            f"privacy.noise_multiplier: {noise:g} costs an epsilon of {spent:.3g} over the whole run, but the budget "
            f"privacy.epsilon is {settings.epsilon:g}",
            remedy="Raise one of the two, or leave out privacy.noise_multiplier",
        )
    return noise


def _all_classes(stream: TaskStream, task: int) -> PrivateRehearsal:
    """Return a training set of one blank image of each class seen so far."""
    new, old = stream.classes(task), stream.seen(task - 1)
    every = dict.fromkeys((*old, *new), 1)
    return PrivateRehearsal(
        task=task,
        new=blank(dict.fromkeys(new, 1)),
        seen=blank(every),
        memory=blank(dict.fromkeys(old, 1)),
        settings=MemorySettings(exemplars=10**9, quota_megabytes=1e9),
        sites=1,
        seed=0,
        census=every,
        old=old,
        image_bytes=1,
        chance=evenly,
    )
