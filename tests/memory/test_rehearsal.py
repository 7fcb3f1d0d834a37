from __future__ import annotations

import copy
from collections import Counter
from datetime import date

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_config
from torch import Tensor

from dynammo_core.configuration.settings import MemorySettings
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from dynammo_core.memory.rehearsal import (
    SIMULATED_DAY,
    balanced_set,
    check_room,
    classes_of,
    drop_expired,
    remember,
    share_of,
)
from dynammo_core.memory.selection import SELECTIONS
from dynammo_core.memory.store import ReplayMemory, Taken
from dynammo_core.methods.rehearsal import Rehearsal
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import derive_seed, seeded_generator

SIDE = 4
BEFORE = ReplayMemory(-1, Samples.empty())


def images_of(counts: dict[int, int], *, channels: int = 3, seed: int = 0) -> Samples:
    """So many random images of each class, the classes mixed."""
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)], dtype=torch.int64)
    generator = seeded_generator(seed, str(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    shape = (len(labels), channels, SIDE, SIDE)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Samples(images, labels, tuple(f"{seed}-{label}-{i}" for i, label in enumerate(labels.tolist())))


def pixels(samples: Samples) -> Tensor:
    return samples.images.flatten(1).double() - 128


def settings(exemplars: int, **others: object) -> MemorySettings:
    return MemorySettings(exemplars=exemplars, **others)  # type: ignore[arg-type]


def taken_in(
    memory: ReplayMemory,
    new: Samples,
    shares: MemorySettings,
    *,
    site: int = 0,
    sites: int = 1,
    today: date = SIMULATED_DAY,
    fewest_patients: int = 1,
) -> ReplayMemory:
    return remember(
        memory,
        new,
        task=memory.task + 1,
        settings=shares,
        site=site,
        sites=sites,
        features=pixels,
        seed=9,
        today=today,
        fewest_patients=fewest_patients,
    )


def same(a: Samples, b: Samples) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.record_ids == b.record_ids


def counts(samples: Samples) -> dict[int, int]:
    return dict(Counter(samples.labels.tolist()))


@pytest.mark.parametrize(
    ("exemplars", "sites", "classes", "megabytes", "share"),
    [
        (200, 1, 10, 1024, (20, 10)),  # 200 / 10
        (200, 5, 4, 1024, (10, 4)),  # 200 / 5 = 40 a site, / 4
        (100, 3, 4, 1024, (8, 4)),  # 33 a site, 8 a class and 1 over
        (3, 5, 1, 1024, (1, 1)),  # fewer exemplars than sites: this one is among the first
        (200, 20, 11, 1024, (1, 10)),  # 10 a site: one class less than it holds
        (2000, 1, 10, 1.0, (8, 10)),  # 1,000,000 / 12,288 bytes = 81 images, / 10
        (2000, 1, 10, 0.05, (1, 4)),  # room for 4 images
        (2000, 1, 10, 0.01, (0, 0)),  # no room for one image
        (200, 1, 0, 1024, (0, 0)),  # a site without images
        (0, 3, 4, 1024, (0, 0)),
    ],
)
def test_share_of_a_class_by_hand(
    exemplars: int, sites: int, classes: int, megabytes: float, share: tuple[int, int]
) -> None:
    memory = settings(exemplars, quota_megabytes=megabytes)
    assert share_of(memory, site=0, sites=sites, classes=classes, image_bytes=3 * 64 * 64) == share


@given(
    exemplars=st.integers(0, 3000),
    sites=st.integers(1, 50),
    classes=st.integers(1, 100),
    megabytes=st.floats(0.01, 20),
    image_bytes=st.integers(1, 200_000),
)
def test_shares_fit_both_quotas_and_fall_to_nothing_only_where_nothing_is_left(
    exemplars: int, sites: int, classes: int, megabytes: float, image_bytes: int
) -> None:
    memory = settings(exemplars, quota_megabytes=megabytes)
    shares = [
        share_of(memory, site=site, sites=sites, classes=classes, image_bytes=image_bytes) for site in range(sites)
    ]
    room = int(megabytes * 1e6) // image_bytes
    assert sum(share.each * share.classes for share in shares) <= exemplars
    for site, share in enumerate(shares):
        assert share.each * share.classes * image_bytes <= megabytes * 1e6
        own = exemplars // sites + (site < exemplars % sites)
        if share.classes == classes:  # what does not divide by the sites or by the classes is left over
            assert (share.each + 1) * classes > min(exemplars // sites, room) or share.each == 1
        else:
            assert (share.each, share.classes) == (min(1, own, room), min(own, room)) < (1, classes)


def test_with_more_classes_than_exemplars_a_site_keeps_one_of_as_many_as_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """200 exemplars at 20 sites are 10 a site. Of 10 classes each keeps one; then two more classes arrive."""
    shares, left = settings(200), []
    for site in range(20):
        memory = taken_in(BEFORE, images_of(dict.fromkeys(range(10), 3)), shares, site=site, sites=20)
        assert counts(memory.samples) == dict.fromkeys(range(10), 1)
        assert not caplog.records
        for label in (10, 11):
            before = set(classes_of(memory.samples))
            memory = taken_in(memory, images_of({label: 3}, seed=label), shares, site=site, sites=20)
            assert len(memory.samples) == 10
            assert set(classes_of(memory.samples)) <= before | {label}
        assert "the memory has room for 10 of 11 classes: the others keep no exemplar" in caplog.text
        caplog.clear()
        # The same classes stay when all come at once: which of them give way does not depend on the order.
        once = taken_in(BEFORE, images_of(dict.fromkeys(range(12), 3)), shares, site=site, sites=20)
        assert classes_of(once.samples) == classes_of(memory.samples)
        left += classes_of(memory.samples)
        caplog.clear()
    # 200 exemplars of 12 classes: each stays at 16.7 of 20 sites, give or take 1.7, and none is lost to all.
    assert min(Counter(left).values()) >= 10
    assert len(Counter(left)) == 12


def of_patients(patients: list[str]) -> Samples:
    """Images of one class, alike for alike patients, so that herding likes to take many of one patient."""
    generator = seeded_generator(5, "patients")
    looks = {name: torch.randint(0, 256, (3, SIDE, SIDE), generator=generator) for name in sorted(set(patients))}
    noise = torch.randint(0, 9, (len(patients), 3, SIDE, SIDE), generator=generator)
    images = torch.stack([looks[name] for name in patients]) // 2 + noise
    labels = torch.zeros(len(patients), dtype=torch.int64)
    return Samples(images.to(torch.uint8), labels, tuple(map(str, range(len(patients)))), tuple(patients))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_as_many_patients_as_the_policy_wants_stand_behind_a_class_however_small_it_gets(selection: str) -> None:
    new = of_patients(["ann"] * 30 + ["bob"] * 4 + ["cid"] * 3 + ["dee"])
    shares = settings(8, selection=selection)
    usual = taken_in(BEFORE, new, shares).samples
    spread = taken_in(BEFORE, new, shares, fewest_patients=3)
    assert len(usual) == len(spread.samples) == 8
    for count in range(1, 9):
        assert len({*spread.samples.patient_ids[:count]}) >= min(3, count)
    assert set(usual.patient_ids[:3]) != set(spread.samples.patient_ids[:3])  # it makes a difference here
    # more patients than there are: all of them come first, and then the best
    everyone = taken_in(BEFORE, new, shares, fewest_patients=7).samples
    assert sorted(everyone.patient_ids[:4]) == ["ann", "bob", "cid", "dee"]
    smaller = taken_in(spread, images_of({1: 9}, seed=1), shares, fewest_patients=3)
    assert len({*smaller.samples.of_class(0).patient_ids}) == 3


def test_a_balanced_set_shows_as_many_patients_as_the_policy_wants() -> None:
    new = of_patients(["ann"] * 60 + ["bob"] * 2 + ["cid"])
    new = Samples(new.images, torch.ones_like(new.labels), new.record_ids, new.patients)
    memory, shares = taken_in(BEFORE, images_of({0: 9}), settings(6)).samples, settings(6)
    usual = balanced(memory, new, shares)
    spread = balanced_set(memory, new, settings=shares, site=0, sites=1, seed=1, learnt=1, fewest_patients=3)
    assert counts(usual) == counts(spread) == {0: 6, 1: 6}
    assert set(usual.of_class(1).patient_ids) == {"ann"}
    assert set(spread.of_class(1).patient_ids) == {"ann", "bob", "cid"}


def test_memory_over_three_tasks() -> None:
    # 24 exemplars at 2 sites: 12 here; 6 for each of 2 classes, 3 of 4, 2 of 6.
    shares = settings(24)
    memory, before = BEFORE, Samples.empty()
    for task, share in enumerate((6, 3, 2)):
        classes = (2 * task, 2 * task + 1)
        memory = taken_in(memory, images_of(dict.fromkeys(classes, 10), seed=task), shares, sites=2)
        assert memory.task == task
        assert counts(memory.samples) == dict.fromkeys(range(2 * task + 2), share)
        for label in classes_of(before):  # of the old, the best stay
            assert same(memory.samples.of_class(label), before.of_class(label).subset(range(share)))
        before = memory.samples


@pytest.mark.parametrize("selection", SELECTIONS)
def test_new_classes_are_chosen_by_their_features_and_seed(selection: str) -> None:
    new = images_of({3: 8, 5: 12})
    memory = taken_in(BEFORE, new, settings(10, selection=selection))
    for label in (3, 5):
        own = new.of_class(label)
        best = SELECTIONS[selection](pixels(own), 5, torch.Generator().manual_seed(derive_seed(9, label)))
        assert same(memory.samples.of_class(label), own.subset(best))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_remembering_is_pure(selection: str) -> None:
    shares = settings(12, selection=selection)
    first = taken_in(BEFORE, images_of({0: 9, 1: 9}), shares)
    new = images_of({2: 9, 3: 9}, seed=1)
    untouched = copy.deepcopy((first.samples, new))
    twice = [taken_in(first, new, shares) for _ in range(2)]
    assert same(twice[0].samples, twice[1].samples)
    assert same(first.samples, untouched[0])
    assert same(new, untouched[1])


MONDAY, FRIDAY = date(2026, 3, 2), date(2026, 3, 6)


def two_days() -> ReplayMemory:
    """Two classes on Monday, one on Friday; 12 exemplars: 6 for each of 2 classes, then 4 of 3."""
    first = taken_in(BEFORE, images_of({0: 9, 1: 9}), settings(12), today=MONDAY)
    assert first.taken == (Taken(0, MONDAY),) * 12
    return taken_in(first, images_of({2: 9}, seed=1), settings(12), today=FRIDAY)


def test_each_exemplar_keeps_the_task_and_the_day_that_it_was_taken_in() -> None:
    memory = two_days()
    assert memory.taken == (Taken(0, MONDAY),) * 8 + (Taken(1, FRIDAY),) * 4
    assert memory.samples.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize(
    ("today", "days", "left"),
    [
        (date(2026, 3, 6), 4, [0, 1, 2]),  # Monday was 4 days ago: not more
        (date(2026, 3, 7), 4, [2]),
        (date(2026, 3, 10), 4, [2]),
        (date(2026, 3, 11), 4, []),
        (date(2026, 3, 1), 1, [0, 1, 2]),  # a clock that was set back makes nothing older
    ],
)
def test_exemplars_expire_by_the_day(today: date, days: int, left: list[int]) -> None:
    memory = two_days()
    kept = drop_expired(memory, today, days)
    assert classes_of(kept.samples) == left
    assert kept.task == memory.task == 1
    for label in left:
        assert same(kept.samples.of_class(label), memory.samples.of_class(label))
    assert kept.taken == tuple(time for time in memory.taken if (time == Taken(1, FRIDAY)) or 0 in left) * bool(left)


def test_a_memory_keeps_its_class_names_until_it_gets_others() -> None:
    shares = settings(12)

    def named(memory: ReplayMemory, task: int, *names: str) -> ReplayMemory:
        new = images_of({task: 9}, seed=task)
        return remember(
            memory, new, task=task, settings=shares, site=0, sites=1, features=pixels, seed=9, class_names=names
        )

    first = named(BEFORE, 0, "melanoma", "naevus")
    assert first.class_names == named(first, 1).class_names == ("melanoma", "naevus")
    assert named(first, 1, "melanoma", "naevus", "wart").class_names == ("melanoma", "naevus", "wart")


def test_a_site_without_the_tasks_classes_keeps_its_memory() -> None:
    shares = settings(12)
    first = taken_in(BEFORE, images_of({0: 9, 1: 9}), shares)
    after = taken_in(first, Samples.empty(), shares)
    assert after.task == 1
    assert same(after.samples, first.samples)


def test_a_site_without_any_images_yet_has_an_empty_memory_that_moves_on() -> None:
    memory = taken_in(taken_in(BEFORE, Samples.empty(), settings(12)), Samples.empty(), settings(12))
    assert memory.task == 1
    assert not len(memory.samples)
    assert counts(taken_in(memory, images_of({4: 9}), settings(6)).samples) == {4: 6}


def test_a_class_with_fewer_images_than_its_share_is_kept_whole() -> None:
    memory = taken_in(BEFORE, images_of({0: 2, 1: 30}), settings(20))
    assert counts(memory.samples) == {0: 2, 1: 10}


@pytest.mark.parametrize(("old", "new"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_grey_and_colour_images_fit_the_disk_together(old: int, new: int) -> None:
    # Grey images become RGB beside others: 48 bytes each. 480 bytes hold 10 of them: 2 of each of 4 classes.
    shares = settings(1000, quota_megabytes=480e-6)
    first = taken_in(BEFORE, images_of({0: 20, 1: 20}, channels=old), shares)
    second = taken_in(first, images_of({2: 20, 3: 20}, channels=new, seed=1), shares)
    assert first.samples.images.numel() <= 480
    assert second.samples.images.numel() <= 480
    assert second.samples.images.shape[1] == max(old, new)


def balanced(
    memory: Samples, new: Samples, shares: MemorySettings, *, seed: int = 1, sites: int = 1, learnt: int = 0
) -> Samples:
    return balanced_set(memory, new, settings=shares, site=0, sites=sites, seed=seed, learnt=learnt)


def test_in_the_first_task_all_new_images_serve_and_later_as_many_as_beside_exemplars_of_all_classes() -> None:
    new = images_of({0: 3, 1: 8})
    assert same(balanced(Samples.empty(), new, settings(20)), new)
    assert counts(balanced(Samples.empty(), new, settings(20), learnt=4)) == {0: 3, 1: 5}
    assert counts(balanced(Samples.empty(), new, settings(20), learnt=30)) == {0: 1, 1: 1}
    assert same(balanced(Samples.empty(), new, settings(0), learnt=4), new)


@given(exemplars=st.integers(4, 60), sites=st.integers(1, 2), old=st.integers(1, 4), new=st.integers(0, 4))
def test_balanced_set_has_equally_many_of_each_class(exemplars: int, sites: int, old: int, new: int) -> None:
    shares = settings(exemplars * sites)
    memory = taken_in(BEFORE, images_of(dict.fromkeys(range(old), 70)), shares, sites=sites).samples
    arriving = images_of(dict.fromkeys(range(old, old + new), 70), seed=1)
    chosen = balanced(memory, arriving, shares, sites=sites)
    assert counts(chosen) == dict.fromkeys(range(old + new), exemplars // old)
    assert same(chosen.subset(range(len(memory))), memory)
    assert len(set(chosen.record_ids)) == len(chosen)
    assert set(chosen.record_ids) <= {*memory.record_ids, *arriving.record_ids}


def test_it_is_as_balanced_once_the_memory_took_the_new_classes_in() -> None:
    shares, arriving = settings(24), images_of({2: 20, 3: 20}, seed=1)
    before = taken_in(BEFORE, images_of({0: 20, 1: 20}), shares)
    sets = (
        Rehearsal(1, arriving, Samples.empty(), memory.samples, shares, sites=1, seed=5, learnt=2).balanced()
        for memory in (before, taken_in(before, arriving, shares))
    )
    assert [counts(chosen) for chosen in sets] == [dict.fromkeys(range(4), 12), dict.fromkeys(range(4), 6)]


def test_balanced_set_takes_what_there_is_of_a_rare_class() -> None:
    memory = taken_in(BEFORE, images_of({0: 20, 1: 20}), settings(20)).samples
    assert counts(balanced(memory, images_of({2: 3, 3: 50}, seed=1), settings(20))) == {0: 10, 1: 10, 2: 3, 3: 10}


def test_balanced_set_depends_on_the_seed_alone() -> None:
    memory = taken_in(BEFORE, images_of({0: 20}), settings(10)).samples
    new = images_of({1: 50}, seed=1)
    assert same(balanced(memory, new, settings(10)), balanced(memory, new, settings(10)))
    assert not same(balanced(memory, new, settings(10)), balanced(memory, new, settings(10), seed=2))


def test_without_memory_nothing_is_kept_and_all_new_images_serve() -> None:
    memory = taken_in(BEFORE, images_of({0: 5}), settings(0)).samples
    new = images_of({1: 5}, seed=1)
    assert not len(memory)
    assert same(balanced(memory, new, settings(0)), new)


@pytest.mark.parametrize(
    ("exemplars", "megabytes", "said"),
    [
        (9, 1024, r"9 exemplars of 10 classes leave a class without any\. Accepted: 0, .* at least 10\. .* to 50,"),
        (1, 1024, "leave a class without any"),
        (200, 1e-5, "1e-05 MB have no room for an image of 48 bytes"),
    ],
)
def test_a_memory_that_cannot_hold_every_class_is_refused(exemplars: int, megabytes: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_room(settings(exemplars, quota_megabytes=megabytes), classes=10, sites=5, image_bytes=48)


@pytest.mark.parametrize(
    ("exemplars", "said"),
    [
        (0, ""),  # a run without memory is a choice
        (10, "a site that holds all 10 classes keeps one exemplar of 2 of them, and none of the others; with 50"),
        (49, "keeps one exemplar of 9 of them"),
        (50, "keeps 1 exemplars of each"),
        (149, "keeps 2 exemplars of each"),
        (150, ""),
    ],
)
def test_a_memory_that_holds_little_is_told_of(exemplars: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    check_room(settings(exemplars), classes=10, sites=5, image_bytes=48)
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


def test_an_experiment_is_refused_before_it_begins() -> None:
    with pytest.raises(ConfigError, match="3 exemplars of 4 classes leave a class without any"):
        Experiment(small_config("replay", {"memory.exemplars": 3})).check()
    Experiment(small_config("streaming_ridge", {"memory.exemplars": 3})).check()  # it keeps none
