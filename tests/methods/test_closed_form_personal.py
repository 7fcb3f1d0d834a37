"""Own heads: what goes down for them, and that "alone" is what a federation of that site alone would answer by."""

from __future__ import annotations

import pytest
import torch
from hospitals import deployed
from method_bench import Bench, bench, toy_images

from client.consent.policy import Policy, violations
from dynammo_core.data.samples import Samples
from dynammo_core.methods.closed_form_personal import own_heads
from dynammo_core.methods.closed_form_sums import SUMS
from dynammo_core.methods.settings.closed_form import StreamingRidgeSettings
from dynammo_core.models.ridge.personal import OwnImages
from dynammo_core.plan import ALONE, PERSONAL, Sums
from dynammo_core.support.errors import ConfigError

CLOSED_FORMS = ("streaming_ridge", "first_session", "ranpac")
HELD = toy_images((0,), each=9), toy_images((1,), each=4)


def learnt(method: str, sites: list[Samples]) -> Bench:
    made = bench(method, personal=True, regulariser=0.1)
    made.begin(0)
    for name in ("count", "sum"):
        made.summarise(made.stage(name, 0), sites)  # type: ignore[arg-type]
        made.finish(name, 0)
    return made


def heads_at(made: Bench, images: Samples) -> dict[str, Sums]:
    with torch.no_grad():
        features = made.inputs(made.stage("evaluate", 0), images) if len(images) else torch.empty(0)
    summed = torch.ones(len(images), dtype=torch.bool)
    return dict(own_heads(made.method, made.model, OwnImages(features, images.labels, images.patient_ids, summed)))


def test_every_closed_form_sends_the_sums_down_only_if_asked_to() -> None:
    for method in CLOSED_FORMS:
        plain, personal = (bench(method, personal=wanted).method.evaluation() for wanted in (False, True))
        assert plain.tables == () and not {*SUMS} & {*plain.down}
        assert personal.tables == (PERSONAL, ALONE)
        assert {*personal.down} == {*plain.down, *SUMS, "heads.classes.sample_weight"}
        assert plain.up == personal.up == ()


def test_alone_is_what_a_federation_of_that_site_alone_would_solve() -> None:
    own = Samples.concatenate(list(HELD))
    made, lone = learnt("streaming_ridge", [own, toy_images((0, 1), each=20, seed=1)]), learnt("streaming_ridge", [own])
    alone = heads_at(made, own)[ALONE]
    for name in ("weight", "bias"):
        torch.testing.assert_close(alone[f"heads.classes.{name}"], lone.head.get_buffer(name), rtol=1e-5, atol=1e-6)


def test_a_site_without_training_images_answers_by_the_common_head() -> None:
    made = learnt("streaming_ridge", list(HELD))
    assert heads_at(made, Samples.empty()) == {PERSONAL: {}}


def test_tests_of_own_heads_would_tell_what_noise_hides() -> None:
    params = StreamingRidgeSettings(name="streaming_ridge", personal=True)
    assert "set method.personal: false" in params.obstacle_to_privacy("example")


def test_sums_come_down_to_no_site_that_could_read_another_ones() -> None:
    sites, classes = ["alpha", "beta", "gamma"], ["0", "1", "2", "3"]
    for method, names, federation, words in (
        ("ridge", sites, {}, "the difference of two sums shows another site a single exemplar"),
        ("dynammo_ridge", sites, {}, "set method.personal: false"),
        ("streaming_ridge", sites[:2], {}, "as few as 2 sites"),
        ("ranpac", sites, {"quorum": 0.6}, "as few as 2 sites"),
        ("streaming_ridge", sites, {"sums_rows": 8}, "sums_rows cuts"),
        ("first_session", sites, {"stages": {"sum": {"quorum": 0.3}}}, "as few as 1 sites"),
        ("streaming_ridge", sites, {"evaluate_only": ["gamma"]}, "gave none of their own"),
    ):
        with pytest.raises(ConfigError, match=words):
            deployed(names, classes, method, {"federation": federation, "method": {"personal": True}})
    allowed = deployed(sites, classes, "streaming_ridge", {"method": {"personal": True}})
    assert violations(Policy(), allowed) == [
        "it sends sums in which this site's are to the other sites, and sums_of_others is false"
    ]
    assert violations(Policy(sums_of_others=True), allowed) == []
