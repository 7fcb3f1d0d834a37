"""One site: the images it holds, and the replay memory on its disk. Nothing here is ever sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.settings import SiteSettings, load_site
from dynammo_core.class_registry import Announcement, band
from dynammo_core.config import WEIGHTS_BY_NAME
from dynammo_core.data.arrivals import Arrivals
from dynammo_core.data.loading import load_samples, open_own
from dynammo_core.data.samples import Samples, Split
from dynammo_core.errors import ConfigError, ProtocolError
from dynammo_core.experiment import Experiment, experiment_from_json
from dynammo_core.memory.store import MemoryStore
from dynammo_core.methods.base import Rehearsal
from dynammo_core.protocol import Instruction
from dynammo_core.seeding import derive_seed
from dynammo_core.settings import DataSettings

RUN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"


class Site:
    """What a step may use of a site.

    Attributes:
        experiment: with the site's own data, weights and device in it.
        index: its number among the sites of the experiment.
        memory: its exemplars.
        share: the number of its part of a simulation's data set; None where all images are its own.
    """

    def __init__(self, experiment: Experiment, index: int, memory: MemoryStore, *, share: int | None) -> None:
        self.experiment = experiment
        self.index = index
        self.memory = memory
        self.share = share

    def rehearsal(self, task: int) -> Rehearsal:
        """All that this site may train on in a task."""
        config = self.experiment.config
        return Rehearsal(
            task=task,
            new=self.new_images(task),
            seen=self.train_images(self._arrivals(task).seen(self.index, task)),
            memory=self.memory.load().samples,
            settings=config.memory,
            sites=config.federation.sites,
            seed=derive_seed(config.seed, "site", self.index),
        )

    def new_images(self, task: int) -> Samples:
        """The site's training images of the classes that reach it with a task."""
        return self.train_images(self._arrivals(task).new(self.index, task))

    def train_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's training images of these classes."""
        return _load(self.experiment, "train", classes, self.share)

    def test_images(self, classes: tuple[int, ...]) -> Samples:
        """The site's test images of these classes."""
        return _load(self.experiment, "test", classes, self.share)

    def _arrivals(self, task: int) -> Arrivals:
        """When classes reach this site, as known in a task."""
        return self.experiment.arrivals


def simulated_site(experiment: Experiment, index: int, workspace: Path, run: str) -> Site:
    """A share of the one data set of a simulation, and a folder in the run directory."""
    name = f"site-{index:03d}"
    return Site(experiment, index, MemoryStore(workspace / name, run=run, site=name), share=index)


def deployed_site(experiment: Experiment, index: int, settings: SiteSettings, run: str) -> Site:
    """A hospital: all images that its `site.yaml` names, and a folder for each run.

    Raises:
        ProtocolError: the instruction is for another site, or names a run in a way that is no name.
    """
    names = experiment.config.federation.site_names or ()
    if not 0 <= index < len(names) or names[index] != settings.site:
        raise ProtocolError(
            f"the instruction is for site {index} of {list(names)}, and this site is {settings.site!r}",
            remedy="The operator registers each key under the name in its site.yaml, and an experiment lists the names",
        )
    if not re.fullmatch(RUN, run):
        raise ProtocolError(f"{run!r} names no run", accepted=RUN)
    return Site(experiment, index, MemoryStore(settings.memory.folder / run, run=run, site=settings.site), share=None)


def open_site(instruction: Instruction, node_config: Mapping[str, object]) -> Site:
    """The site that an instruction is for: this hospital, if the node was started with a `site-config`.

    Raises:
        ConfigError: the `site.yaml` is wrong, or the experiment asks for something that the site has to name itself.
        ProtocolError: the instruction is for another site.
    """
    file = node_config.get("site-config")
    if file is None:
        experiment = experiment_from_json(instruction.experiment)
        return simulated_site(experiment, instruction.site, Path(instruction.workspace), instruction.run)
    settings = load_site(Path(str(file)))
    experiment = experiment_from_json(_localised(instruction.experiment, settings))
    return deployed_site(experiment, instruction.site, settings, instruction.run)


def announcement(node_config: Mapping[str, object]) -> Announcement:
    """The classes that this hospital's labels name, with a band of the number of their images.

    Raises:
        ConfigError: this is a simulated site, or its `site.yaml` is wrong.
        DataError: its images cannot be indexed.
    """
    file = node_config.get("site-config")
    if file is None:
        raise ConfigError("a simulated site has nothing to announce", remedy="Start it by `dynammo-site start`")
    own = load_site(Path(str(file))).data
    dataset = open_own(DataSettings(dataset=own.dataset, root=own.root), seed=0)
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    counts = np.bincount(labels, minlength=len(dataset.class_names)).tolist()
    named = zip(dataset.class_names, counts, strict=True)
    return Announcement({name: band(count) for name, count in named if count})


def _localised(experiment: str, settings: SiteSettings) -> str:
    """The experiment with this site's own places in it: no server decides what a site reads from its disk."""
    config = json.loads(experiment)
    config["data"] |= {"dataset": settings.data.dataset, "root": settings.data.root}
    config["compute"]["device"] = settings.device
    if settings.weights is not None:
        config["backbone"]["weights"] = settings.weights
    elif config["backbone"]["weights"] not in WEIGHTS_BY_NAME:
        raise ConfigError(
            f"the experiment takes the backbone's weights from a file of the server, {config['backbone']['weights']!r}",
            remedy="Name this site's copy of it as `weights` in site.yaml",
        )
    return json.dumps(config, sort_keys=True)


@lru_cache(maxsize=64)
def _load(experiment: Experiment, part: str, classes: tuple[int, ...], share: int | None) -> Samples:
    """Decoded once for all steps of a task that this process answers; of all images, or of a simulated share."""
    split: Split = getattr(experiment.dataset, part)
    held: NDArray[np.int64] = np.arange(len(split.labels))
    if share is not None:
        held = getattr(experiment.partition, part)[share]
    wanted = held[np.isin(split.labels[held], classes)]
    return load_samples(split, wanted, experiment.config.data.image_size)
