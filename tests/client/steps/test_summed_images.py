"""Which of a site's images the common sums contain: what it was away for comes later, what came since is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message
from hospitals import deployed, make_hospitals, with_images
from safetensors.torch import load_file
from small_runs import events, run_small, small_config

from client.app import app
from dynammo_core.experiment import Experiment
from dynammo_core.methods import closed_form_personal
from dynammo_core.models.ridge.personal import OwnImages, best_beta
from simulations.engines.local_grid import LocalGrid

CLASSES, SITES = list("0123"), ("alpha", "beta", "gamma", "delta")
EACH, FEW = dict.fromkeys(CLASSES, 8), dict.fromkeys(CLASSES, 3)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[OwnImages]:
    """The images of each choice of an own head, in order; sites are asked one after another."""
    seen = list[OwnImages]()
    monkeypatch.setattr(closed_form_personal, "best_beta", lambda *given: (seen.append(given[2]), best_beta(*given))[1])
    return seen


@pytest.mark.parametrize("method", ["streaming_ridge", "ranpac", "fecam"])
def test_what_a_site_was_away_for_is_summed_with_the_next_task(tmp_path: Path, method: str) -> None:
    """The weight of a class, a power of 2 near 1 over its number, is the same for 24 images of 3 sites and for 32."""
    weights = list[Mapping[str, torch.Tensor]]()
    for away in (set(), {"alpha"}):
        hospitals = make_hospitals(tmp_path / f"{len(away)} away", dict.fromkeys(SITES, EACH))
        hospitals.away = away

        def back(event: Mapping[str, Any]) -> None:
            if event["event"] == "step_finished" and event["stage"] == "evaluate":
                hospitals.away = set()  # noqa: B023 (called within this turn)

        config = deployed([*SITES], CLASSES, method, {"federation": {"quorum": 0.6}})
        run = run_small(config, tmp_path / f"{len(away)} runs", grid=hospitals, listeners=[back]).path
        sums = [event for event in events(run, "step_finished") if event["stage"] == "sum"]
        samples = [{site["site"]: site["samples"] for site in event["sites"]} for event in sums]
        usual = dict.fromkeys(range(len(SITES)), 16)
        assert samples == ([{1: 16, 2: 16, 3: 16}, {**usual, 0: 32}] if away else [usual, usual])
        weights.append(load_file(run / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5)


def test_images_that_a_site_got_later_are_not_in_the_sums(tmp_path: Path, asked: list[OwnImages]) -> None:
    hospitals = make_hospitals(tmp_path, {"alpha": FEW, "beta": EACH, "gamma": EACH})

    def more(event: Mapping[str, Any]) -> None:
        if event["event"] == "step_finished" and event["stage"] == "evaluate" and event["task"] == 0:
            with_images(tmp_path, "alpha", EACH)

    config = deployed(list(hospitals.files), CLASSES, "streaming_ridge", {"method": {"personal": True}})
    run_small(config, tmp_path / "runs", grid=hospitals, listeners=[more])
    before, after = asked[0], asked[3]
    assert bool(before.summed.all()) and len(before.labels) == 6
    for label, inside in ((0, 3), (1, 3), (2, 8), (3, 8)):
        assert int((after.labels == label).sum()) == 8
        assert int(after.summed[after.labels == label].sum()) == inside


def test_a_simulated_site_that_failed_has_no_images_in_the_sums(tmp_path: Path, asked: list[OwnImages]) -> None:
    patience = {"federation.quorum": 0.6, "federation.attempts": 1}
    config = small_config("streaming_ridge", {"method.personal": True, "federation.partition": "iid", **patience})
    names, experiment = ("count", "sum", "evaluate"), Experiment(config)
    assert [step.stage.name for step in experiment.steps] == 2 * [*names]

    def handle(message: Message, context: Context) -> Message:
        told = message.content.config_records["instruction"]
        if told["site"] == 0 and told["step"] == names.index("sum"):
            return Message(Error(102, "DataError"), reply_to=message)
        return app(message, context)

    run_small(config, tmp_path, grid=LocalGrid(handle, nodes=config.federation.sites, run_config={}))  # type: ignore[arg-type]
    first, second = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    assert [bool(images.summed.any()) for images in first] == [False, *(len(first) - 1) * [True]]
    later = torch.isin(second[0].labels, torch.tensor(experiment.stream.classes(1)))
    assert torch.equal(second[0].summed, later)
    assert all(bool(images.summed.all()) for images in [*first[1:], *second[1:]])
