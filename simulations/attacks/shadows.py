"""Shadow models: the audited experiment again, each time on another half of all its images."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from client.app import app as client_app
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.sources import array_keys
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.support.csv_text import as_cell
from dynammo_core.support.seeding import derive_seed
from server.run.run import run_experiment
from server.run_directory.directory import Event
from simulations.attacks.audited_run import AuditedRun, Records
from simulations.attacks.findings import Flags, Tell
from simulations.engines.local_grid import LocalGrid

COLUMNS = ("path", "label", "split", "site", "record_id")


def shadow_models(run: AuditedRun, *, pairs: int, seed: int, tell: Tell) -> Iterator[tuple[Predictor, Flags]]:
    """Run the experiment on halves of the training and test images together, each image staying at its site.

    The models of a pair share the images among them, so that each image, whether it was trained on in the audited run
    or not, lies outside exactly one model of a pair. Halves are drawn within each class.

    Args:
        run: the audited run.
        pairs: of models.
        seed: of the halves, and of all that is random in the shadow runs.
        tell: receives the progress.

    Yields:
        Each model, and which of the run's records it was trained on.

    Raises:
        DynammoError: a shadow run cannot go on.
    """
    records = run.records
    with TemporaryDirectory(prefix="dynammo-shadows-") as folder:
        place = Path(folder)
        _write_images(records, place)
        for number in range(2 * pairs):
            half = halves(records.samples.labels.numpy(), derive_seed(seed, "halves", number // 2))
            trained = half if number % 2 else ~half
            manifest = place / f"half-{number}.csv"
            sites = _write_manifest(run, records, trained, manifest)
            config = _config(run, manifest, sites, derive_seed(seed, "shadow", number) % 2**31)
            what, steps = f"shadow model {number + 1} of {2 * pairs}", len(run.experiment.steps)

            def listen(event: Event, what: str = what, steps: int = steps) -> None:
                if event["event"] == "step_finished":
                    tell(what, event["step"] + 1, steps)

            grid = LocalGrid(client_app, nodes=sites, run_config={})
            done = run_experiment(grid, config, runs=place, resume=None, listeners=[listen])
            yield Predictor.load(done.path, config.compute.device), trained


def halves(labels: np.ndarray[Any, np.dtype[np.int64]], seed: int) -> Flags:
    """Return which half each image is in, [N]; the halves have as many of each class, give or take one."""
    rng = np.random.default_rng(seed)
    half = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels).tolist():
        members = rng.permutation(np.flatnonzero(labels == label))
        half[members[: len(members) // 2]] = True
    return half


def _write_images(records: Records, folder: Path) -> None:
    """Write images as they enter the network, so that a shadow run decodes the very same pixels."""
    for number, image in enumerate(records.samples.images[:].numpy()):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number}.png")


def _write_manifest(run: AuditedRun, records: Records, trained: Flags, file: Path) -> int:
    """Write the manifest of images to train on and of the one test image that must be; return the number of sites."""
    names, labels = run.experiment.class_names, records.samples.labels.tolist()
    content = array_keys(records.samples.images[:].numpy())
    known = {content[i] for i in np.flatnonzero(trained).tolist()}
    test = next(i for i, key in enumerate(content) if key not in known)
    used = [(i, "train") for i in np.flatnonzero(trained).tolist()] + [(test, "test")]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([f"{i}.png", as_cell(names[labels[i]]), split, f"{records.sites[i]:05d}", i] for i, split in used)
    file.write_text(buffer.getvalue(), encoding="utf-8")
    return len({records.sites[i] for i, _ in used})


def _config(run: AuditedRun, manifest: Path, sites: int, seed: int) -> Config[Any]:
    """Return the audited configuration on other images: the same tasks in the same order, whatever the seed."""
    experiment = run.experiment
    tasks = experiment.stream.tasks
    settings = experiment.config.model_dump(mode="json")
    settings["seed"] = seed
    settings["data"] |= {
        "dataset": "manifest",
        "root": str(manifest),
        "classes": list(experiment.class_names),
        "sets": None,
        "train_per_class": None,
        "test_per_class": None,
        "validation_per_class": 0,
    }
    settings["tasks"] = {
        "sizes": [len(classes) for classes in tasks],
        "class_order": [label for classes in tasks for label in classes],
    }
    settings["federation"] |= {"sites": sites, "partition": "natural"}
    return resolve(settings, "a shadow run", {})
