"""A simulated site's share, written to disk and read again: the same images, labels and records, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hospitals import Hospitals, make_hospital
from PIL import Image
from small_runs import RUN, SITES, Outcome, run_small, small_settings

from client.consent.policy import load_policy
from client.consent.settings import load_site
from client.hospital.site_opening import deployed_site, simulated_site
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.samples import Samples
from dynammo_core.experiment import Experiment
from simulations.rehearsal.deployment import deployed_config
from simulations.rehearsal.site_export import export_sites

NAMES = ("alpha", "beta", "gamma")


def config_of(data: Mapping[str, Any], scanners: str = "same", **federation: Any) -> Config[Any]:
    settings = small_settings("replay")
    settings["data"] = {"image_size": 16, **data}
    settings["tasks"] = {"sizes": 2}
    settings["federation"] |= federation
    settings["scanners"] = {"kind": scanners}
    return resolve(settings, "small.yaml", {})


def pictures(folder: Path, mode: str) -> Path:
    """A folder for each of four classes, of images that differ in size, with a copy of one among them."""
    rng = np.random.default_rng(7)
    for label in ("naevus", "melanoma", "a class, with a comma", 'a "quoted" one'):
        for number in range(11):
            shape = (12 + number, 17, 3) if mode == "RGB" else (12 + number, 17)
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


DIGITS = {"dataset": "digits", "train_per_class": 20, "test_per_class": 10}


@pytest.fixture(params=["digits", "digits, validation", "skewed sizes", "grey", "RGB", "scanners"])
def experiment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Experiment]:
    kinds = {
        "digits": lambda: config_of(DIGITS),
        "digits, validation": lambda: config_of({**DIGITS, "validation_per_class": 9}),
        "skewed sizes": lambda: config_of(DIGITS, partition="quantity"),
    }
    folder = {"dataset": "image_folder", "root": str(tmp_path / "pictures")}
    scanners = "mixed" if request.param == "scanners" else "same"
    config = kinds[request.param]() if request.param in kinds else config_of(folder, scanners)
    if request.param not in kinds:
        pictures(tmp_path / "pictures", "grey" if request.param == "grey" else "RGB")
    yield Experiment(config)


def same(one: Samples, other: Samples) -> None:
    assert one.record_ids == other.record_ids
    assert torch.equal(one.labels, other.labels)
    assert one.images.dtype == other.images.dtype
    assert torch.equal(one.images, other.images)


def exported(experiment: Experiment, folder: Path) -> list[Path]:
    """The `site.yaml` of each site, beside what was exported for it."""
    folders = [folder / name / "images" for name in NAMES]
    assert list(export_sites(experiment, folders)) == folders
    return [make_hospital(folder / name, name, folder / name / "images" / "manifest.csv") for name in NAMES]


def test_a_site_sees_what_the_simulated_one_saw(experiment: Experiment, tmp_path: Path) -> None:
    files = exported(experiment, tmp_path / "sites")
    every = tuple(range(experiment.classes))
    deployed = deployed_config(experiment, NAMES)
    seen = 0
    for index, file in enumerate(files):
        settings = load_site(file)
        policy = load_policy(settings.policy)
        data = deployed.model_dump(mode="json")
        data["data"] |= {"dataset": "manifest", "root": settings.data.root}
        there = deployed_site(Experiment(resolve(data, "there", {})), index, settings, policy, RUN, "approved")
        here = simulated_site(experiment, index, tmp_path / "work", RUN)
        assert there.experiment.class_names == experiment.class_names
        first, last = 0, len(experiment.stream) - 1
        same(there.rehearsal(first).new, here.rehearsal(first).new)
        same(there.rehearsal(last).seen, here.rehearsal(last).seen)
        same(there.test_images(every), here.test_images(every))
        assert there.rehearsal(last).seed == here.rehearsal(last).seed
        seen += len(here.rehearsal(last).seen) + len(here.test_images(every))
    assert seen == len(experiment.dataset.train.labels) + len(experiment.dataset.test.labels)


def test_pixels_are_written_without_loss(experiment: Experiment, tmp_path: Path) -> None:
    """Before any resizing, which could hide a difference; where sites have scanners, as the site's own shows them."""
    exported(experiment, tmp_path / "sites")
    held = experiment.partition.train[1].tolist()
    files = sorted((tmp_path / "sites" / "beta" / "images" / "train").iterdir())
    assert len(files) == len(held) > 0
    here = simulated_site(experiment, 1, tmp_path / "work", RUN).train_images(tuple(range(experiment.classes)))
    scanned = here.images.permute(0, 2, 3, 1).numpy() if experiment.config.scanners.kind != "same" else None
    for place, (index, file) in enumerate(zip(held, files, strict=True)):
        with Image.open(file) as image:
            wanted = experiment.dataset.train.source.read(index) if scanned is None else scanned[place]
            assert np.array_equal(np.asarray(image), wanted)


def test_the_deployed_run_equals_the_simulated_one(tmp_path: Path) -> None:
    """To the last bit of the model: summary, accuracies, counts."""
    experiment = Experiment(config_of(DIGITS))
    simulated = Outcome.of(run_small(experiment.config, tmp_path / "simulated").path)
    files = exported(experiment, tmp_path / "sites")
    grid = Hospitals(dict(zip(NAMES, files, strict=True)))
    assert len(NAMES) == SITES
    deployed = Outcome.of(run_small(deployed_config(experiment, NAMES), tmp_path / "deployed", grid=grid).path)
    assert deployed.model == simulated.model
    assert deployed.accuracies == simulated.accuracies
    assert deployed.confusions == simulated.confusions
    differing = {key for key in simulated.summary if simulated.summary[key] != deployed.summary[key]}
    assert differing == {"config_hash"}
    assert not list((tmp_path / "deployed").glob("*/sites/*"))  # the memory lies at the sites
    assert all((file.parent / "memory").is_dir() for file in files)


def test_the_deployed_configuration_says_what_the_sites_hold() -> None:
    experiment = Experiment(config_of({**DIGITS, "validation_per_class": 5}, quorum=0.5))
    config = deployed_config(experiment, NAMES)
    assert config.federation.site_names == NAMES
    assert (config.federation.sites, config.federation.quorum) == (3, 0.5)
    assert config.data.classes == tuple(map(str, range(10)))
    drawn = (config.data.train_per_class, config.data.test_per_class, config.data.validation_per_class)
    assert drawn == (None, None, 0)
    kept = config.model_copy(update={"data": experiment.config.data, "federation": experiment.config.federation})
    assert kept == experiment.config
