"""One adapter set for all tasks: each task's inherits from the last, waits in the archive, and is merged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dynammo_core.aggregation.batch_norm import is_batch_norm_statistic
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.merging.fisher import comparable, diagonal_fisher
from dynammo_core.merging.operators import merge
from dynammo_core.merging.task_sets import TaskSets
from dynammo_core.merging.task_vectors import TASK_VECTORS
from dynammo_core.methods.adapters import ADAPTERS, adapt, adapters_of, auxiliary_logits, tuned
from dynammo_core.methods.rehearsal import balanced, if_it_holds
from dynammo_core.methods.settings.adapters import FISHER, WEIGHTED, MergeSettings
from dynammo_core.models.adapters import folded_alphas
from dynammo_core.models.batch_statistics import batch_statistics
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import matching, remove, under
from dynammo_core.plan import Archive, Batch, Finish, Stage, Summarise, nothing

STATISTICS = ("extractor.*adapters.*.running_*",)
PARAMETERS = tuple(f"extractor.*adapters.*.{kind}" for kind in ("alpha", "weight", "bias"))
INITIAL = "initial."
SAMPLES = "samples"


def inherit(params: MergeSettings, model: IncrementalModel, archive: Archive, task: int) -> None:
    """Start a task's set as a copy of the previous task's own: sets that start afresh cancel when averaged."""
    adapters = adapters_of(tuned(model))
    if earlier := under(archive, _set(task - 1)):
        adapters.load_state_dict(earlier)
    elif params.operators & TASK_VECTORS.keys():
        _put(archive, INITIAL, adapters.state_dict())


def forget_sets(archive: Archive) -> None:
    """Remove the sets of all tasks, which fit another network, and what is noted of them."""
    remove(archive, "set", INITIAL, FISHER, SAMPLES)


def adapt_and_merge(params: MergeSettings, stream: TaskStream, task: int, then: Finish = nothing) -> tuple[Stage, ...]:
    """List the stages that tune a task's adapter set, and end with the merge of the sets of all tasks so far.

    The merge follows `adapt`; under `fisher` it follows one more stage, in which sites tell how much each entry counts.

    Args:
        params: of the method.
        stream: tells the task's classes.
        task: counts from 0.
        then: what else `adapt` ends with.
    """
    classes, by_fisher = stream.classes(task), FISHER in params.operators

    def note_counts(archive: Archive, task: int, class_counts: Sequence[int]) -> None:
        samples = sum(class_counts[label] for label in classes)
        archive[f"{SAMPLES}{task}"] = torch.tensor([samples], dtype=torch.float64)

    def end_adapting(model: IncrementalModel, archive: Archive, task: int) -> None:
        adapters = adapters_of(tuned(model))
        adapter_set = adapters.state_dict()
        _put(archive, _set(task), adapter_set)
        if by_fisher:  # sites derive by what will be merged
            adapters.load_state_dict(prepared(params, adapter_set))
        else:
            merge_sets(params, model, archive, task)
        then(model, archive, task)

    def end_weighing(model: IncrementalModel, archive: Archive, task: int) -> None:
        answered = adapters_of(tuned(model)).state_dict()  # sites have answered under the adapters' names
        squares = {name: tensor for name, tensor in answered.items() if not is_batch_norm_statistic(name)}
        _put(archive, _fisher(task), comparable(squares))
        merge_sets(params, model, archive, task)

    counted = note_counts if WEIGHTED in params.operators else nothing
    tune = adapt(params, classes, note_counts=counted, finish=end_adapting)
    weigh = Summarise(
        FISHER,
        down=tune.down,
        up=PARAMETERS,
        inputs="prefix",
        squares=True,
        learns_from=if_it_holds(classes),
        computes=fisher_information,
        finish=end_weighing,
    )
    return (tune, weigh) if by_fisher else (tune,)


def recalibrate(params: MergeSettings, task: int) -> tuple[Stage, ...]:
    """List the stage in which sites estimate the merged set's batch-norm statistics anew, over their balanced sets.

    Deviation from DynaMMo: averaging weights collapses variances. Merging the first task's set gives that set, whose
    own statistics stand, and adapters without batch norm have none: then there is no such stage.
    """
    if not (task and params.recalibrate and params.keeps_statistics):
        return ()
    stage = Summarise("recalibrate", down=(ADAPTERS,), up=STATISTICS, learns_from=balanced, computes=merged_statistics)
    return (stage,)


def merge_sets(params: MergeSettings, model: IncrementalModel, archive: Archive, task: int) -> None:
    """Merge the archived sets of tasks 0..`task` into the network."""
    tasks, operators = [each for each in range(task + 1) if under(archive, _set(each))], params.operators
    sets = [under(archive, _set(earlier)) for earlier in tasks]
    task_sets = TaskSets(
        [prepared(params, adapter_set) for adapter_set in sets] if len(sets) > 1 else sets,
        initial=under(archive, INITIAL),
        samples=[archive[f"{SAMPLES}{t}"].item() for t in tasks] if WEIGHTED in operators else (),
        importance=[under(archive, _fisher(t)) for t in tasks] if FISHER in operators else (),
        density=params.merge_density,
        scale=params.merge_scale,
    )
    adapters_of(tuned(model)).load_state_dict(merge(params.merge, task_sets))


def prepared(params: MergeSettings, adapter_set: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write a set as it is merged; it computes the same."""
    return folded_alphas(adapter_set) if params.merge_alpha == "fold" else adapter_set


def fisher_information(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the Fisher information of the tuned adapters' parameters, from inputs at the level "prefix"."""
    names = matching(model.state_dict(), PARAMETERS)
    return diagonal_fisher(model, names, lambda inputs: auxiliary_logits(model, inputs, "prefix"), batches)


def merged_statistics(model: IncrementalModel, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Compute the merged adapters' batch-norm statistics, pooled over batches of images."""
    return batch_statistics(model, STATISTICS, batches, tuned(model))


def _set(task: int) -> str:
    return f"set{task}."


def _fisher(task: int) -> str:
    return f"{FISHER}{task}."


def _put(archive: Archive, prefix: str, state: dict[str, Tensor]) -> None:
    archive.update({f"{prefix}{name}": tensor.clone() for name, tensor in state.items()})
