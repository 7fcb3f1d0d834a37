"""What was added to a run can be taken back until a site has answered for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hospitals import deployed

from dynammo_core.code_identity import code_hash
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.wire.announcement import with_new_task
from server.run_directory.checkpoint import CheckpointStore
from server.run_directory.directory import RunDirectory
from server.run_directory.extension import without_unbegun
from server.run_directory.lineage import with_sites
from server.run_directory.progress import Identity, Progress

NEXT = 7


@pytest.fixture
def config() -> Config[Any]:
    return deployed(["general", "county"], ["naevus", "melanoma"])


@pytest.fixture
def directory(tmp_path: Path, config: Config[Any]) -> RunDirectory:
    """A run that has finished its tasks."""
    directory = RunDirectory.create(tmp_path, config)
    identity = Identity(config.canonical_json(), code_hash(config), "")
    CheckpointStore(directory.checkpoints, identity).save(Progress(next_step=NEXT), {}, {})
    directory.log("answers", step=NEXT - 1, answered=2, asked=2, sites=[0, 1], failed=[])
    return directory


def test_a_misspelt_class_and_a_site_that_joined_with_it_go(config: Config[Any], directory: RunDirectory) -> None:
    patient = resolve({**config.model_dump(mode="json"), "federation": waiting(config, quorum=0.5)}, "", {})
    extended = with_sites(with_new_task(patient, ["psorasis"]), ["mercy"])
    directory.log("answers", step=NEXT, answered=0, asked=3, sites=[], failed=[0, 1, 2])
    assert without_unbegun(extended, directory.path) == patient, "what may change at any time stays changed"


def test_what_a_site_has_answered_for_stays(config: Config[Any], directory: RunDirectory) -> None:
    extended = with_new_task(config, ["psoriasis"])
    directory.log("answers", step=NEXT, answered=1, asked=2, sites=[1], failed=[])
    assert without_unbegun(extended, directory.path) == extended


def test_without_a_checkpoint_nothing_is_taken_back(config: Config[Any], tmp_path: Path) -> None:
    assert without_unbegun(config, tmp_path) == config


def waiting(config: Config[Any], **changes: object) -> dict[str, Any]:
    return {**config.federation.model_dump(mode="json"), **changes}
