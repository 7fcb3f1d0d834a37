"""A site's decoded images: no answer depends on them, and nothing of a withdrawn record is among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hospitals import deployed, make_hospital, with_images
from small_runs import RUN, hospital_config, instruction, small_site, write_hospitals
from typer.testing import CliRunner

from client.cli import app as command_line
from client.hospital.hospital import Hospital, Request
from client.steps import site as site_module
from client.steps.actions import answer
from client.steps.site import Site
from dynammo_core.code_identity import project_hash
from dynammo_core.data.decoded import packs, stored_images
from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.feature_cache import RecentlyUsed
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from dynammo_core.wire.protocol import Instruction, Report

HELD = {"0": 5, "1": 4, "3": 3}
CONFIG = deployed(["alpha"], ["0", "1", "3"])
"""The same images at every site."""


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is left in memory of what another test decoded."""
    forget(monkeypatch)
    yield


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_recently_decoded", RecentlyUsed[Samples](10**9))


def opened(file: Path) -> Site:
    asked = Instruction(CONFIG.canonical_json(), project_hash(), RUN, 0, 0, "/server/says/so", {})
    return Hospital(file).open(Request(asked, {}))


def stored(memory: Path) -> list[Path]:
    return sorted((memory / "images").rglob(f"*{packs.ROWS}"))


@pytest.mark.parametrize("method", ["dynammo", "streaming_ridge"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "read when indexed"])
def test_answers_are_the_same_bits_with_none_cold_and_warm(
    method: str, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_hospitals(tmp_path / "images", {"a": {"0": 9, "1": 8, "2": 5, "3": 7}})
    experiment = Experiment(hospital_config(folder, method, sites=1))

    def answers(cache: ImageCache | None, workspace: Path) -> list[Report]:
        reports = []
        for step in experiment.steps:
            forget(monkeypatch)
            site = replace(small_site(experiment, 0, workspace), images=cache)
            reports.append(answer(instruction(experiment, step, 0, workspace), site))
        return reports

    plain = answers(None, tmp_path / "none")
    monkeypatch.setattr(stored_images, "IN_MEMORY", 10**9 if in_memory else 0)
    for temperature in ("cold", "warm"):
        experiment.__dict__.pop("feature_cache", None)
        cache = ImageCache(tmp_path / "cache", 10**8, site="alpha", key=bytes(range(32)))
        for one, other in zip(plain, answers(cache, tmp_path / temperature), strict=True):
            assert list(one.weights) == list(other.weights)
            for name, tensor in one.weights.items():
                assert torch.equal(tensor, other.weights[name]), name
            assert {**one.numbers, "seconds": 0} == {**other.numbers, "seconds": 0}
    assert list((tmp_path / "cache").rglob(f"*{packs.ROWS}"))


def test_the_second_message_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))
    first = opened(file).train_images((0, 1, 2))
    assert stored(tmp_path / "alpha" / "memory")
    forget(monkeypatch)
    monkeypatch.setattr("dynammo_core.data.sources.decode_image", None)
    assert torch.equal(opened(file).train_images((0, 1, 2)).images[:], first.images[:])


def test_a_site_that_keeps_none_decodes_again(tmp_path: Path) -> None:
    data = with_images(tmp_path, "alpha", HELD)
    file = make_hospital(tmp_path / "alpha", "alpha", data, memory={"images_megabytes": 0})
    assert len(opened(file).train_images((0, 1, 2))) == sum(HELD.values())
    assert stored(tmp_path / "alpha" / "memory") == []


def test_withdrawn_records_go_with_a_purge_and_never_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_hospital(tmp_path / "alpha", "alpha", with_images(tmp_path, "alpha", HELD))
    before = opened(file).train_images((0, 1, 2))
    gone = before.record_ids[0]
    pixels = hashlib.sha256(before.images[0].numpy().tobytes()).hexdigest()
    assert any(pixels in index.read_text(errors="replace") for index in index_files(tmp_path))
    result = CliRunner().invoke(command_line, ["memory", "purge", str(file), "--record-id", gone, "--yes"])
    assert result.exit_code == 0, result.output
    assert stored(tmp_path / "alpha" / "memory") == []
    forget(monkeypatch)
    after = opened(file).train_images((0, 1, 2))
    assert after.record_ids == before.record_ids[1:]
    assert torch.equal(after.images[:], before.images[1:])
    assert stored(tmp_path / "alpha" / "memory")
    assert not any(pixels in index.read_text(errors="replace") for index in index_files(tmp_path))


def index_files(folder: Path) -> list[Path]:
    return sorted((folder / "alpha" / "memory" / "images").rglob(f"*{packs.INDEX}"))
