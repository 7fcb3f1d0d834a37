"""`dynammo-sim bench stacked`: tuning the adapters of several sites as one network, beside one site after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.terminal import Terminal, parse_overrides, readable_errors
from simulations.options import ConfigFile, Overrides

if TYPE_CHECKING:
    from torch import Tensor

    from dynammo_core.configuration.config import Config
    from dynammo_core.experiment import Experiment
    from dynammo_core.models.incremental_model import IncrementalModel
    from dynammo_core.plan import Step

console = Terminal()


@dataclass(frozen=True)
class Row:
    """Speed of both ways, in images a second of all sites together, and how far apart their tensors are in the end.

    The difference is the largest of all tensors, each as a part of the tensor's largest entry.
    """

    sites: int
    batch: int
    in_turn: float
    stacked: float
    difference: float

    @property
    def ratio(self) -> float:
        """How much faster the stacked sites learn."""
        return self.stacked / self.in_turn


def stacked_table(
    config: ConfigFile,
    sites: Annotated[list[int] | None, typer.Option(min=1, help="Sites at once.", show_default="2, 4, 8")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=2, help="Images a batch.", show_default="8, 32")] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches of each site.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is measured; the best counts.")] = 5,
    set_: Overrides = None,
) -> None:
    """Speed of tuning the adapters of several sites at once over one frozen backbone, against site after site.

    Both take turns, in this process, on compute.device: read the ratios. The images are noise, and every site has as
    many; the largest difference is between the tensors that both ways end with, as a part of their largest entry.
    """
    with readable_errors():
        from dynammo_core.configuration.config import load_config

        settings = load_config(config, parse_overrides(set_ or []))
        table = Table("sites", "images a batch", "images/s in turn", "images/s stacked", "ratio", "largest difference")
        for row in measured(settings, sites or [2, 4, 8], batch or [8, 32], batches, repeats):
            rates = (f"{row.in_turn:.0f}", f"{row.stacked:.0f}", f"{row.ratio:.2f}")
            table.add_row(str(row.sites), str(row.batch), *rates, f"{row.difference:.0e}")
        console.print(table)


def measured(
    settings: Config[Any], sites: Sequence[int], sizes: Sequence[int], batches: int, repeats: int
) -> list[Row]:
    """A row for each number of sites and of images a batch.

    Raises:
        ConfigError: the experiment trains no adapters.
    """
    from dynammo_core.experiment import Experiment

    experiment = Experiment(settings)
    experiment.use_torch()
    step = _adapting_step(experiment)
    return [_row(experiment, step, count, size, batches, repeats) for count in sites for size in sizes]


def _adapting_step(experiment: Experiment) -> Step:
    from dynammo_core.plan import Action
    from dynammo_core.wire.protocol import names_up

    model = experiment.build_model(0)
    for step in experiment.steps:
        trains = step.task == 0 and step.stage.action is Action.FIT
        if trains and any(".adapters." in name for name in names_up(model, step.stage)):
            return step
    raise ConfigError(
        f"method.name: {experiment.config.method.name} trains no adapters in its first task", accepted="such as dynammo"
    )


def _row(experiment: Experiment, step: Step, sites: int, size: int, batches: int, repeats: int) -> Row:
    from dynammo_core.models.incremental_model import travelling_names

    given = _noise(experiment, step, sites, size, batches)
    ways: tuple[Callable[..., None], ...] = (_in_turn, _stacked)
    best = [float("inf")] * len(ways)
    ends: list[list[dict[str, Tensor]]] = []
    for _ in range(repeats):
        ends.clear()
        for way, train in enumerate(ways):
            models = [experiment.build_model(0).to(experiment.device) for _ in range(sites)]
            best[way] = min(best[way], _seconds(experiment, partial(train, experiment, step, models, given)))
            ends.append([model.state_dict() for model in models])
    names = travelling_names(models[0])
    difference = max(_apart(a[name], b[name]) for a, b in zip(*ends, strict=True) for name in names)
    in_turn, stacked = (sites * size * batches / seconds for seconds in best)
    return Row(sites, size, in_turn, stacked, difference)


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors, as a part of the largest entry."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def _noise(
    experiment: Experiment, step: Step, sites: int, size: int, batches: int
) -> list[list[tuple[Tensor, Tensor]]]:
    """Batches of each site, carried as far as a site carries them once for all epochs."""
    import torch

    from client.steps.local_step import start_level
    from dynammo_core.support.seeding import seeded_generator

    data, model = experiment.config.data, experiment.build_model(0).to(experiment.device).eval()
    classes, generator = torch.tensor(experiment.stream.classes(0)), seeded_generator("bench")
    level = start_level(step.stage.inputs, data.augmentation)

    def batch() -> tuple[Tensor, Tensor]:
        images = torch.randn(size, 3, data.image_size, data.image_size, generator=generator).to(experiment.device)
        labels = classes[torch.randint(len(classes), (size,), generator=generator)].to(experiment.device)
        return model.extractor.embed(images, start="images", end=level), labels

    with torch.no_grad():
        return [[batch() for _ in range(batches)] for _ in range(sites)]


def _in_turn(experiment: Experiment, step: Step, models: list[IncrementalModel], given: Any) -> None:
    for model, batches in zip(models, given, strict=True):
        _train(experiment, step, model, batches, sites=1)


def _stacked(experiment: Experiment, step: Step, models: list[IncrementalModel], given: Any) -> None:
    from dynammo_core.methods.adapter_tuning import AUXILIARY
    from dynammo_core.models.stacked_adapters import in_turns, stack, unstack

    network = stack(models, AUXILIARY)
    together = [tuple(in_turns(part) for part in zip(*batch, strict=True)) for batch in zip(*given, strict=True)]
    _train(experiment, step, network, together, sites=len(models))
    unstack(network, models)


def _train(experiment: Experiment, step: Step, model: IncrementalModel, batches: Any, *, sites: int) -> None:
    """One epoch of the stage, by the loop and the loss that a site has."""
    from client.steps.local_step import start_level
    from dynammo_core.methods.base import LossContext
    from dynammo_core.training import fit, train_only
    from dynammo_core.wire.protocol import names_up

    stage, method = step.stage, experiment.method
    assert stage.optimisation is not None
    level = start_level(stage.inputs, experiment.config.data.augmentation)
    context = LossContext(step.task, replace(stage, inputs=level))
    fit(
        train_only(model, set(names_up(model, stage))),
        lambda inputs, labels: sites * method.loss(model, inputs, labels, context),
        lambda _: iter(batches),
        stage.optimisation.model_copy(update={"epochs": 1}),
        round_=0,
    )


def _seconds(experiment: Experiment, work: Callable[[], object]) -> float:
    """Of the processor where one thread works alone, else of the clock, with all that a GPU was given to do."""
    import torch

    on_gpu = experiment.device.type == "cuda"
    alone = not on_gpu and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize(experiment.device)
    started = clock()
    work()
    if on_gpu:
        torch.cuda.synchronize(experiment.device)
    return clock() - started
