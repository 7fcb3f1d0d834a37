"""Training sets in which one record more or less is one record more or less, and what may be known of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
import torch

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.memory.rehearsal import SIMULATED_DAY
from dynammo_core.memory.store import ReplayMemory, Taken
from dynammo_core.methods.dynammo import DynaMMo
from dynammo_core.methods.settings.adapters import DynaMMoSettings
from dynammo_core.plan import LearningStage
from dynammo_core.privacy.rehearsal import PrivateRehearsal, hashed, kept, remember_by_record

STREAM = TaskStream(((0, 1), (2, 3)))
CENSUS = {0: 40, 1: 38, 2: 60, 3: 1}
METHOD = DynaMMo(DynaMMoSettings(name="dynammo", norm="group"), STREAM)
STAGES = [stage for stage in METHOD.stages(1) if isinstance(stage, LearningStage)]
CHANCE = hashed(7)


def samples(counts: dict[int, int], mark: str = "") -> Samples:
    labels = [label for label, count in counts.items() for _ in range(count)]
    records = tuple(f"{mark}{label}/{i}" for label, count in counts.items() for i in range(count))
    return Samples(
        torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64), records
    )


def rehearsal(new: Samples, memory: Samples) -> PrivateRehearsal:
    """Forty exemplars of two sites: ten for each of the two old classes."""
    return PrivateRehearsal(
        task=1,
        new=new,
        seen=Samples.concatenate([memory, new]),
        memory=memory,
        settings=MemorySettings(exemplars=40),
        sites=2,
        seed=0,
        census=CENSUS,
        old=(0, 1),
        image_bytes=12,
        chance=CHANCE,
    )


def remembered(memory: ReplayMemory, new: Samples, task: int = 0, share: int = 10) -> ReplayMemory:
    return remember_by_record(
        memory, new, task=task, share=share, census=CENSUS, chance=CHANCE, today=SIMULATED_DAY, class_names=()
    )


EMPTY = ReplayMemory(-1, Samples.empty())


@pytest.mark.parametrize("removed", [0, 17, 55, 77])
def test_a_record_less_takes_itself_and_nothing_else_out_of_memory_and_training_sets(removed: int) -> None:
    first, second = samples({0: 40, 1: 38}), samples({2: 60, 3: 1})
    assert [stage.name for stage in STAGES] == ["adapt", "balance"]

    def everything(first: Samples) -> dict[str, set[str]]:
        memory = remembered(EMPTY, first)
        later = rehearsal(second, memory.samples)
        sets = {stage.name: set(stage.learns_from(later).record_ids) for stage in STAGES}
        return {**sets, "memory": set(remembered(memory, second, task=1, share=5).record_ids)}

    lost = first.record_ids[removed]
    full, without = everything(first), everything(first.subset([i for i in range(len(first)) if i != removed]))
    for name, records in full.items():
        assert records - {lost} == without[name], name
        assert len(records) > 5


def test_a_new_record_is_the_only_one_that_changes_too() -> None:
    memory = remembered(EMPTY, samples({0: 40, 1: 38})).samples
    for new in (samples({2: 60, 3: 1}), samples({2: 60}), Samples.empty()):
        less = new.subset(range(1, len(new))) if len(new) else new
        for stage in STAGES:
            one, other = (set(stage.learns_from(rehearsal(own, memory)).record_ids) for own in (new, less))
            assert one - set(new.record_ids[:1]) == other
            assert other  # whether the site trains at all is the census's to say, not the images'


def test_a_smaller_share_keeps_a_part_of_what_a_larger_kept() -> None:
    held = samples({0: 40, 1: 38})
    sizes = []
    before = set(held.record_ids)
    for share in (40, 20, 10, 2, 0):
        now = set(kept(held, share, CENSUS, CHANCE).record_ids)
        assert now <= before
        before = now
        sizes.append(len(now))
    assert sizes[0] == 78  # 40 / 40 and 40 / 38: all
    # Binomial(40, 10 / 40) and (38, 10 / 38): 20 in all, give or take 3.9.
    assert 20 - 12 < sizes[2] < 20 + 12
    assert sizes[-1] == 0


def test_exemplars_keep_the_task_and_day_of_their_coming() -> None:
    first = remembered(EMPTY, samples({0: 40}))
    later = replace(first, taken=(Taken(0, date(2001, 2, 3)),) * len(first.samples))
    memory = remembered(later, samples({2: 60}), task=1)
    assert memory.task == 1
    for record, taken in zip(memory.record_ids, memory.taken, strict=True):
        assert taken == (Taken(0, date(2001, 2, 3)) if record.startswith("0/") else Taken(1, SIMULATED_DAY))


def test_the_shadow_is_as_large_as_the_census_says_and_holds_no_image() -> None:
    real = rehearsal(samples({2: 9}), samples({0: 3}))
    shadow = real.shadow()
    adapt, balance = (stage.learns_from(shadow).class_counts(4) for stage in STAGES)
    assert adapt == [10, 10, 60, 1]
    assert balance == [10, 10, 10, 1]
    assert set(shadow.new.record_ids) == {""}
    assert not shadow.new.images.any()
    assert replace(real, new=Samples.empty(), seen=Samples.empty(), memory=Samples.empty()).shadow().census == CENSUS
