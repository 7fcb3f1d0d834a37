"""What a run will cost each of its sites, known before it begins: nothing of it depends on anyone's images."""

from __future__ import annotations

from collections.abc import Sequence

from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods.base import Method
from dynammo_core.plan import Action, Step
from dynammo_core.privacy.accounting import Charge, compose, least_noise, site_epsilon
from dynammo_core.privacy.noise import steps_of_epoch
from dynammo_core.privacy.rehearsal import PrivateRehearsal, blank, evenly
from dynammo_core.support.errors import ConfigError

CENSUS = "census"


def charge_of(step: Step, method: Method, noise_multiplier: float) -> Charge | None:
    """What a site's answer to a step costs beyond the census; None if nothing.

    Each step of DP-SGD is a Poisson-subsampled Gaussian mechanism, sums are a plain one. The classes are those of which
    the method takes records into its training set.
    """
    settings, stage = method.privacy, step.stage
    if not method.needs_noise(stage):
        return None
    rate, steps = 1.0, 1
    if stage.action is Action.FIT:
        assert stage.optimisation is not None
        rate, steps = settings.sampling_rate, stage.optimisation.epochs * steps_of_epoch(settings.sampling_rate)
    return Charge(step.task, stage.name, step.round, noise_multiplier, rate, steps, classes_of_step(step, method))


def classes_of_step(step: Step, method: Method) -> tuple[int, ...]:
    """The classes that the training set of a step may hold, ascending: the method is asked with blank images of all."""
    labels = method.training_set(step.stage, _all_classes(method.stream, step.task)).labels
    return tuple(sorted(set(labels.tolist())))


def census_charge(task: int, classes: tuple[int, ...], settings: PrivacySettings) -> Charge:
    """What the noised numbers of a task's new training images cost: one image changes one number by one."""
    return Charge(task, CENSUS, 0, settings.count_noise, 1.0, 1, classes)


def example_charges(method: Method, steps: Sequence[Step], noise_multiplier: float) -> list[Charge]:
    """All that each site is charged for in a run."""
    tasks = range(max(step.task for step in steps) + 1)
    charges = [census_charge(task, method.stream.classes(task), method.privacy) for task in tasks]
    found = (charge_of(step, method, noise_multiplier) for step in steps)
    return charges + [charge for charge in found if charge]


def client_charges(steps: Sequence[Step], noise_multiplier: float) -> list[Charge]:
    """What the server charges for: one full-batch Gaussian mechanism for each round of training."""
    training = [step for step in steps if step.stage.action is Action.FIT]
    return [Charge(step.task, step.stage.name, step.round, noise_multiplier, 1.0, 1, ()) for step in training]


def noise_of_run(method: Method, steps: Sequence[Step]) -> float:
    """The noise multiplier of all of a run's mechanisms but the census: as set, or the least that the budget allows.

    Of `example` a noise that is set may pass the budget: each site sees to that itself, and abstains.

    Raises:
        ConfigError: no noise keeps the run within the budget, or, of `client`, that which is set does not.
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
            f"privacy.noise_multiplier: {noise:g} costs an epsilon of {spent:.3g} over the whole run, and the budget, "
            f"privacy.epsilon, is {settings.epsilon:g}",
            remedy="Raise one of them, or leave privacy.noise_multiplier out",
        )
    return noise


def _all_classes(stream: TaskStream, task: int) -> PrivateRehearsal:
    """A training set of one blank image of each class seen so far."""
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
