"""Sums of features are the features where a site has one image of a class, and their mean where it has more."""

from __future__ import annotations

import pytest
import torch
from small_runs import Finished, small_config

from dynammo_core.experiment import Experiment
from dynammo_core.scoring.evaluation import embed_samples
from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import ignore_progress
from simulations.attacks.message import tiny
from simulations.attacks.statistics import attack_statistics, feature_distance, read_rows


@pytest.fixture(scope="module")
def run(finished: Finished) -> AuditedRun:
    return AuditedRun.open(finished("streaming_ridge").path)


def test_the_row_of_one_image_is_its_feature(run: AuditedRun) -> None:
    for row in read_rows(tiny(run.experiment)):
        (image,) = [row.message.images.of_class(row.label)]
        assert len(image) == 1
        experiment, model = row.message.experiment, row.message.model()
        feature = embed_samples(model, image, experiment.config.data.normalisation, experiment.device)[0].double()
        torch.testing.assert_close(row.read, feature, rtol=1e-6, atol=1e-7)
        assert row.cosine() == pytest.approx(1, abs=1e-9)


def test_the_row_of_several_images_is_their_mean(run: AuditedRun) -> None:
    rows = read_rows(run.experiment)
    assert {row.label for row in rows} == {0, 1}
    assert all(len(row.features) == row.message.report.class_counts[row.label] for row in rows)
    several = [row for row in rows if len(row.features) > 1]
    assert several
    for row in several:
        torch.testing.assert_close(row.read, row.features.mean(dim=0), rtol=1e-6, atol=1e-7)
        assert row.features.std(dim=0).max() > 0.01  # they differ: a mean is none of them


def test_findings(run: AuditedRun) -> None:
    outcome = attack_statistics(run, iterations=8, tell=ignore_progress)
    alone, own, image = outcome.findings
    assert (alone.members, image.members) == (1, 1)
    assert own.members == min(len(row.features) for row in read_rows(run.experiment))
    for one in (alone, own):
        assert one.value == pytest.approx(1, abs=1e-9)
        assert one.guess < 0.99
    assert len(outcome.pictures) == 1


def test_the_image_itself_explains_the_feature(run: AuditedRun) -> None:
    row = read_rows(tiny(run.experiment))[0]
    distance = feature_distance(row)
    truth = row.message.images.of_class(row.label).images.float() / 255
    assert float(distance(truth)) == pytest.approx(0, abs=1e-5)
    assert float(distance(1 - truth)) > 0.01


def test_weights_are_no_sums(finished: Finished) -> None:
    run = AuditedRun.open(finished("dynammo").path)
    assert attack_statistics(run, iterations=8, tell=ignore_progress).skipped == "no site sends sums of features"


def test_noise_hides_the_feature() -> None:
    """With differential privacy what is read off a row is further from the feature than any other image's."""
    rows = read_rows(tiny(Experiment(small_config("streaming_ridge", {"privacy.mechanism": "example"}))))
    assert len(rows) == 2
    assert all(abs(row.cosine()) < 0.5 for row in rows)
