"""What a hospital has trained on it never tests on, whatever becomes of its folder while a run goes on for months.

The images are pure noise: nothing can be learnt of their classes, so that a model which knows more than chance was
tested on what it had seen.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hospitals import Hospitals, deployed, make_hospital
from PIL import Image
from small_runs import RUN, events, run_small
from typer.testing import CliRunner

from client.cli import app as site_commands
from client.consent.settings import load_site
from client.doctor.data import data
from client.hospital.hospital import Hospital, Request
from client.hospital.site_opening import shared_experiment
from client.state.known_images import INDEX_FOLDER, LEDGER_FILE
from client.steps.site import Site
from dynammo_core.code_identity import project_hash
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.data.samples import Samples
from dynammo_core.support.errors import DataError, MemoryStoreError
from dynammo_core.wire.protocol import Instruction

CLASSES = ["a", "b", "c", "d"]
# Long enough to know every training image by heart
BY_HEART = {
    "method": {"train": {"rounds": 1, "epochs": 100, "learning_rate": 0.1, "schedule": "cosine"}},
    "memory": {"exemplars": 400},
}
CONFIG = deployed(["alpha"], CLASSES, sections=BY_HEART)


def add_noise(root: Path, first: int, count: int) -> None:
    """So many images of each class, numbered in the order in which they came."""
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            pixels = np.random.default_rng([number, i]).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{(i * 7919) % 1000:03d}-{i}.png")


def rename(root: Path) -> None:
    for path in [*root.rglob("*.png")]:
        path.rename(path.with_name(f"renamed-{path.stem[::-1]}.png"))


def rearrange(root: Path) -> None:
    for path in [*root.rglob("*.png")]:
        deeper = path.parent / f"year {sum(path.name.encode()) % 3}"
        deeper.mkdir(exist_ok=True)
        path.rename(deeper / path.name)


def leave(root: Path) -> None:
    for path in sorted(root.rglob("*.png"))[::3]:
        path.unlink()


def nothing(root: Path) -> None:
    """Images only arrive."""


def forget_process() -> None:
    """A new process has read nothing yet."""
    shared_experiment.cache_clear()
    open_dataset.cache_clear()


def hospital(folder: Path, root: Path, dataset: str = "image_folder", **changes: Any) -> Path:
    data = {"dataset": dataset, "root": str(root)}
    return make_hospital(folder / "alpha", "alpha", root, data=data, **changes)


def opened(site_yaml: Path, run: str = RUN) -> Site:
    forget_process()
    sent = Instruction(CONFIG.canonical_json(), project_hash(), run, 0, 0, "/server", {})
    return Hospital(site_yaml).open(Request(sent, {}))


def pixels(samples: Samples) -> set[bytes]:
    return {image.numpy().tobytes() for image in samples.images}


def on_train(site: Site) -> set[bytes]:
    return pixels(site.rehearsal(1).seen)


def on_test(site: Site) -> set[bytes]:
    return pixels(site.test_images((0, 1, 2, 3)))


@pytest.mark.parametrize("change", [nothing, rename, rearrange, leave])
def test_noise_stays_noise_when_a_folder_changes_between_tasks(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 24)
    grid = Hospitals({"alpha": hospital(tmp_path, root)})
    evaluations = 0

    def in_between(event: dict[str, Any]) -> None:
        nonlocal evaluations
        if event["event"] == "task_evaluated":
            evaluations += 1
            add_noise(root, 24 * evaluations, 16)
            change(root)
            forget_process()

    run = run_small(CONFIG, tmp_path / "runs", grid=grid, listeners=[in_between]).path
    assert evaluations == 2
    with (run / "confusion_matrix.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["after_task"] == "2"]
    images = sum(int(row["count"]) for row in rows)
    right = sum(int(row["count"]) for row in rows if row["true"] == row["predicted"])
    assert images >= 12
    # of four classes a quarter is right by chance: at most three standard deviations more
    assert right <= images / 4 + 3 * (images * 3 / 16) ** 0.5
    losses = [
        event["sites"][0]["metrics"]["loss"] for event in events(run, "step_finished") if event["stage"] == "train"
    ]
    assert max(losses) < 0.2, "what was trained on is known by heart, so that a test on it would show"


@pytest.mark.parametrize("change", [nothing, rename, rearrange, leave])
def test_nothing_trained_is_ever_tested(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = tmp_path / "images"
    site_yaml = hospital(tmp_path, root)
    seen: set[bytes] = set()
    for month in range(6):
        # the first months bring one image of each class, so that which is tested is decided anew each time
        add_noise(root, 3 * month, 1 if month < 3 else 3)
        site = opened(site_yaml, run=f"run-{month // 2}")
        assert not on_test(site) & seen
        seen |= on_train(site)
        assert not on_test(opened(site_yaml)) & seen
        change(root)
    assert on_test(opened(site_yaml)), "new images are tested on"


def manifest(root: Path, patients: Callable[[Path], str] | None = None, split: str | None = None) -> Path:
    """A manifest of the folder's images, with a patient or a split for all of them."""
    header = ["path", "label"] + ["patient"] * bool(patients) + ["split"] * bool(split)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for path in sorted(root.rglob("*.png")):
            row = [str(path.relative_to(root)), path.relative_to(root).parts[0]]
            writer.writerow([*row, *([patients(path)] if patients else []), *([split] if split else [])])
    return root / "manifest.csv"


def test_a_column_of_patients_that_comes_later_moves_nothing_into_the_test(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 20)
    site_yaml = hospital(tmp_path, manifest(root), "manifest")
    seen = on_train(opened(site_yaml))
    for size in (2, 3, 5):
        manifest(root, patients=lambda path, size=size: f"{path.parent.name}{int(path.stem[4:]) // size}")  # type: ignore[misc]
        site = opened(site_yaml)
        assert not on_test(site) & seen
        seen |= on_train(site)


def test_a_new_image_of_a_patient_who_was_trained_on_is_not_tested(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 12)
    site_yaml = hospital(tmp_path, manifest(root, patients=lambda path: path.stem), "manifest")
    site = opened(site_yaml)
    split = (site.rehearsal(1).seen, site.test_images((0, 1, 2, 3)))
    patients = [*split[0].patients]
    for name in CLASSES:
        shutil.rmtree(root / name)
    add_noise(root, 50, 12)
    names = iter(patients)
    manifest(root, patients=lambda _: next(names, "somebody new"))
    again = opened(site_yaml).test_images((0, 1, 2, 3))
    assert len(again)
    assert {*again.patients} == {"somebody new"}


@pytest.mark.parametrize("key", [False, True])
def test_a_split_of_the_data_that_contradicts_the_ledger_is_refused(tmp_path: Path, key: bool) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 5)
    memory = {"memory": {"folder": "memory", "key": "env:INDEX_TEST_KEY"}} if key else {}
    os.environ["INDEX_TEST_KEY"] = "A" * 43 + "="
    site_yaml = hospital(tmp_path, manifest(root, split="train"), "manifest", **memory)
    site = opened(site_yaml)
    assert len(site.rehearsal(0).seen) == 10
    content = (site_yaml.parent / "memory" / LEDGER_FILE).read_bytes()
    assert (b"aes-256-gcm" in content) == key
    assert b"a/000" not in content
    manifest(root, split="test")
    with pytest.raises(DataError, match=r"10 test images.*were trained on here before; the first is 'a/.*split train"):
        opened(site_yaml).test_images((0,))


def test_a_ledger_that_was_changed_stops_the_step(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 5)
    site_yaml = hospital(tmp_path, root)
    on_train(opened(site_yaml))
    ledger = site_yaml.parent / "memory" / LEDGER_FILE
    ledger.write_bytes(ledger.read_bytes()[:-1])
    with pytest.raises(MemoryStoreError, match=r"ledger of images that were trained on is refused.*from a backup"):
        opened(site_yaml).test_images((0,))


def test_a_site_that_names_a_key_later_goes_on_with_what_it_knew(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 5)
    seen = on_train(opened(hospital(tmp_path, root)))
    os.environ["INDEX_TEST_KEY"] = "A" * 43 + "="
    sealed = hospital(tmp_path, root, memory={"folder": "memory", "key": "env:INDEX_TEST_KEY"})
    add_noise(root, 5, 5)
    site = opened(sealed, run="another")
    assert not on_test(site) & seen
    on_train(site)
    assert b"aes-256-gcm" in (sealed.parent / "memory" / LEDGER_FILE).read_bytes()


def test_a_purge_takes_records_out_of_the_ledger_and_files_out_of_the_index(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 5)
    for path in root.rglob("*.png"):
        os.utime(path, (1_700_000_000, 1_700_000_000))  # long unchanged, so that hashes are kept
    site_yaml = hospital(tmp_path, root)
    site = opened(site_yaml)
    records = site.rehearsal(1).seen.record_ids
    memory = site_yaml.parent / "memory"
    assert len(entries(memory / LEDGER_FILE)) == len(records)
    assert [*(memory / INDEX_FOLDER).iterdir()]
    words = ["memory", "purge", str(site_yaml), "--yes", "--record-id", records[0], "--record-id", records[1]]
    result = CliRunner().invoke(site_commands, words)
    assert result.exit_code == 0, result.output
    assert len(entries(memory / LEDGER_FILE)) == len(records) - 2
    assert not [*(memory / INDEX_FOLDER).iterdir()]


def test_doctor_tells_what_was_passed_over_and_what_contradicts_the_ledger(tmp_path: Path) -> None:
    root = tmp_path / "images"
    add_noise(root, 0, 5)
    (root / "a" / "slide.svs").write_text("no image that is read here")
    site_yaml = hospital(tmp_path, root)
    on_train(opened(site_yaml))
    forget_process()
    (told,) = [one for one in data(load_site(site_yaml), CONFIG, lambda *_: None) if one.details]
    assert (told.state, told.details) == ("note", ("passed over: files of other kinds: 1 .svs",))
    again = hospital(tmp_path, manifest(root, split="test"), "manifest")
    with pytest.raises(DataError, match="were trained on here before"):
        list(data(load_site(again), CONFIG, lambda *_: None))


def entries(path: Path) -> list[Any]:
    """The images of a ledger that is not encrypted: a line, JSON, and a checksum of 32 bytes."""
    return list(json.loads(path.read_bytes().partition(b"\n")[2][:-32])["images"])
