"""The cosine head's new rows: imprinted from the mean features of all sites before they are trained."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from method_bench import STREAM, Bench, bench, rehearsal, same, state, toy_images
from torch import Tensor
from torch.nn import functional as F

from dynammo_core.data.samples import Samples
from dynammo_core.methods.imprinting import WEIGHT
from dynammo_core.models.names import matching, travelling_names

cosine_methods = pytest.mark.parametrize("name", ["lucir", "podnet"])

# Site 0 holds nine images of class 2, site 1 three of it and four of class 3.
SITES = (toy_images((2,), 9), Samples.concatenate([toy_images((2,), 3, seed=1), toy_images((3,), 4)]))


def grown(name: str, **params: object) -> Bench:
    """At the start of the second task, the old vectors 1, 2, 3, ... long."""
    made = bench(name, **params)
    made.begin(0)
    with torch.no_grad():
        lengths = torch.arange(1.0, 1 + len(made.head.weight))
        made.head.weight.copy_(F.normalize(made.head.weight, dim=1) * lengths[:, None])
    made.begin(1)
    return made


def unit_means(made: Bench) -> Tensor:
    """Directions of the mean unit features of the classes 2 and 3, over all sites' images."""
    pool = Samples.concatenate(SITES)
    features = F.normalize(made.inputs(made.stage("imprint", 1), pool), dim=1)
    return F.normalize(torch.stack([features[pool.labels == label].mean(dim=0) for label in (2, 3)]), dim=1)


def imprint(made: Bench) -> Tensor:
    """What stands in the new rows afterwards; all else is as it was."""
    before, old = state(made), len(made.head.weight) // 2
    made.summarise(made.stage("imprint", 1), SITES)
    made.finish("imprint", 1)
    after = state(made)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {WEIGHT}
    torch.testing.assert_close(after[WEIGHT][:old], before[WEIGHT][:old])
    return after[WEIGHT][old:]


def test_a_new_vector_points_to_its_mean_over_all_sites_and_is_as_long_as_old_ones() -> None:
    # Old vectors of the lengths 1 and 2: the new ones are 1.5 long.
    made = grown("lucir")
    torch.testing.assert_close(imprint(made), 1.5 * unit_means(made))


def test_the_proxies_of_a_class_stand_apart_around_its_mean() -> None:
    # Eight old proxies of the lengths 1 to 8, a mean of 4.5. A unit vector and one half as long are at most asin(1/2) =
    # 30 degrees from the first: cosines of at least sqrt(3) / 2.
    made = grown("podnet", proxies=4)
    new = imprint(made)
    assert new.norm(dim=1).tolist() == pytest.approx([4.5] * 8)
    cosines = F.normalize(new, dim=1) @ unit_means(made).T
    own = torch.cat([cosines[:4, 0], cosines[4:, 1]])
    assert own.min() > sqrt(3) / 2 - 1e-6
    assert own.max() < 0.999
    assert len(new.unique(dim=0)) == 8


@cosine_methods
def test_every_task_but_the_first_begins_by_imprinting(name: str) -> None:
    made = grown(name)
    for task in range(3):
        assert (made.method.stages(task)[0].name == "imprint") is (task > 0)
    stage, names = made.stage("imprint", 1), travelling_names(made.model)
    assert matching(names, stage.up) == [WEIGHT]
    assert set(matching(names, stage.down)) == set(names)
    held = rehearsal(1)
    assert stage.learns_from(held).record_ids == held.new.record_ids


@cosine_methods
def test_only_the_end_of_imprinting_draws_new_vectors(name: str) -> None:
    made = grown(name)
    before = state(made)
    for stage in made.method.all_stages(1):
        if stage.name != "imprint":
            made.finish(stage.name, 1)
    assert same(state(made), before)


@cosine_methods
def test_a_class_that_reaches_a_site_late_does_not_lose_what_was_learnt_of_it(name: str) -> None:
    made = grown(name)
    before, old = made.head.weight.detach().clone(), len(made.head.weight) // 2
    held = Samples.concatenate([toy_images((1,), 6), toy_images((2, 3), 4)])
    stage = made.stage("imprint", 1)
    made.summarise(stage, [stage.learns_from(replace(rehearsal(1), new=held))])
    made.finish("imprint", 1)
    torch.testing.assert_close(made.head.weight[:old].detach(), before[:old])


@cosine_methods
def test_a_new_class_that_no_site_holds_starts_at_random(name: str) -> None:
    made = grown(name)
    drawn = made.head.weight[-1].detach().clone()
    stage = made.stage("imprint", 1)
    made.summarise(stage, [toy_images((2,), 5)])
    assert made.head.rows == STREAM.seen(1)
    torch.testing.assert_close(made.head.weight[-1].detach(), drawn)
