"""Keep the best round of a stage that trains: after each, sites test its weights on images that they hold out.

A site holds out a share of its patients, the same in all rounds, stages and tasks, from all that trains with `keep:
best`. In a step of its own after each round it sends their mean loss under the weights just averaged, and nothing else
but counts; so under secure aggregation the server learns the mean over sites. What the server keeps of the best round
so far stands in the archive, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, TypeGuard

import torch

from dynammo_core.models.names import remove
from dynammo_core.plan import Action, Archive, Finish, Fit, LearningStage, LearnsFrom, Stage, Step, nothing
from dynammo_core.support.seeding import derive_seed

if TYPE_CHECKING:
    from dynammo_core.data.samples import Samples
    from dynammo_core.methods.rehearsal import Rehearsal
    from dynammo_core.models.incremental_model import IncrementalModel

BEST = "best_round."
"""Prefix, in the archive, of the best round's tensors; beside them stand its loss, its number, and that it is over."""
LOSS, ROUND, OVER = f"{BEST}loss", f"{BEST}round", f"{BEST}over"


@dataclass(frozen=True)
class Check(LearningStage):
    """Sites test what a round has made of the weights on images held out of training, and send the mean loss.

    Attributes:
        of: the stage whose rounds are tested.
        ends_with: what the server does when that stage has ended, with the best round's weights.
    """

    action = Action.FIT

    _: KW_ONLY
    of: Fit
    ends_with: Finish = field(default=nothing, compare=False, repr=False)

    @property
    def rounds(self) -> int:
        """How many times the stage goes to the sites and back."""
        return self.of.rounds


def keeps_best(stage: Stage) -> TypeGuard[Fit]:
    """Tell whether a stage trains, and ends with its best round."""
    return isinstance(stage, Fit) and stage.optimisation.keep == "best"


def with_check(stage: Stage) -> tuple[Stage, ...]:
    """Return a stage, or, if it keeps its best round, the stage on a part of its images and the check on the rest."""
    if not keeps_best(stage):
        return (stage,)
    share = stage.optimisation.held_out
    trains = replace(stage, learns_from=_part(stage.learns_from, share, held_out=False), finish=nothing)
    check = Check(
        f"{stage.name}_check",
        down=stage.down,
        inputs=stage.inputs,
        learns_from=_part(stage.learns_from, share, held_out=True),
        of=trains,
        ends_with=stage.finish,
    )
    return trains, check


def rounds_of(stages: Sequence[Stage]) -> Iterator[tuple[Stage, int]]:
    """Yield the stages of a task with each of their rounds in order; a check comes after each round that it tests."""
    for place, stage in enumerate(stages):
        if not isinstance(stage, Check):
            check = stages[place + 1 : place + 2]
            follows = [each for each in check if isinstance(each, Check)]
            yield from ((each, round_) for round_ in range(stage.rounds) for each in (stage, *follows))


def first_step(step: Step) -> int:
    """Return the index of the step with which a stage began that sites train in, by the order of `rounds_of`."""
    return step.index - step.round * (2 if keeps_best(step.stage) else 1)


def _part(learns_from: LearnsFrom, share: float, *, held_out: bool) -> LearnsFrom:
    def chosen(rehearsal: Rehearsal) -> Samples:
        samples = learns_from(rehearsal)
        out = _held_out(samples, share, rehearsal)
        return samples.subset([at for at, who in enumerate(samples.patient_ids) if (who in out) is held_out])

    return chosen


def _held_out(samples: Samples, share: float, rehearsal: Rehearsal) -> set[str]:
    """Draw the patients that are held out: of no class so that the part held out, or the rest, would be too few."""
    out = {who for who in samples.patient_ids if derive_seed(rehearsal.seed, "held out", who) < share * 2**63}
    shown_in: dict[int, list[str]] = defaultdict(list)
    for who, label in zip(samples.patient_ids, samples.labels.tolist(), strict=True):
        shown_in[label].append(who)

    def too_few(part: list[str]) -> bool:
        return len(part) < rehearsal.fewest_images or len(set(part)) < rehearsal.fewest_patients

    for _ in shown_in:  # whoever comes back for one class may leave another with too few
        for shown in shown_in.values():
            held, rest = ([who for who in shown if (who in out) is side] for side in (True, False))
            if held and (too_few(held) or too_few(rest)):
                out -= {*held}
    return out


def note_round(model: IncrementalModel, archive: Archive, step: Step, trained: Sequence[str], loss: float) -> bool:
    """Note the loss of a round's weights and, if it is the best so far, the weights; return whether the stage is over.

    It is over with the last round, or once `patience` rounds brought nothing better: then the model has the best
    round's weights again.

    Args:
        model: the server's own, with the round's weights.
        archive: where what is noted stands.
        step: the check.
        trained: names of the tensors that the stage trains.
        loss: mean over the images of all sites; nan if no site has images to test on, which ends nothing.
    """
    assert isinstance(step.stage, Check)
    state = model.state_dict()
    if LOSS not in archive or loss < float(archive[LOSS]) or math.isnan(float(archive[LOSS])):  # of none the newest
        archive[LOSS] = torch.tensor(loss, dtype=torch.float64)
        archive[ROUND] = torch.tensor(step.round)
        archive.update({f"{BEST}{name}": state[name].clone() for name in trained})
    patience = step.stage.of.optimisation.patience
    waited = step.round - int(archive[ROUND])
    if not step.is_last_round and (patience is None or waited < patience):
        return False
    model.load_state_dict({name: archive[f"{BEST}{name}"] for name in trained}, strict=False)
    return True


def close(archive: Archive, *, early: bool) -> None:
    """Remove what was noted of a stage's rounds; if it ends `early`, note that those to come are left out."""
    remove(archive, BEST)
    if early:
        archive[OVER] = torch.tensor(1)


def left_out(archive: Archive, step: Step) -> bool:
    """Return whether a step belongs to a stage that ended before it; the last one closes that."""
    if OVER not in archive:
        return False
    if isinstance(step.stage, Check) and step.is_last_round:
        close(archive, early=False)
    return True
