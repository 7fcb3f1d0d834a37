"""A finished simulated run as its auditor sees it: with every site's images, memory and messages at hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from client.hospital.site_opening import simulated_site
from client.steps.site import Site
from dynammo_core.configuration.config import load_config
from dynammo_core.data.samples import Samples
from dynammo_core.deployed.predictor import Predictor
from dynammo_core.experiment import Experiment, experiment_from_json
from dynammo_core.support.errors import RunError
from server.run_directory.run_files import RunFiles
from simulations.attacks.findings import Flags


@dataclass(frozen=True)
class Records:
    """All N images of a run's classes, of the training and the test split, site by site.

    Attributes:
        samples: the images.
        member: which ones were trained on.
        exemplar: which of those lie in the memory of their site at the end.
        sites: [N], whose image it is.
    """

    samples: Samples
    member: Flags
    exemplar: Flags
    sites: tuple[int, ...]


@dataclass(frozen=True)
class AuditedRun:
    """A run directory, opened.

    Attributes:
        path: where it is.
        experiment: what it ran.
        run: the unique name under which sites keep their memory of it.
    """

    path: Path
    experiment: Experiment
    run: str

    @classmethod
    def open(cls, path: Path) -> AuditedRun:
        """Return the run in a directory.

        Raises:
            RunError: there is no run, it has not finished, or its sites were real: their images are not here.
            ConfigError: its settings are none that this version accepts.
        """
        files = RunFiles.read(path)
        if files.summary.get("status") != "completed" or "run" not in files.started:
            raise RunError(
                f"the run in {path} has not finished",
                accepted="a run whose summary.json says completed",
                remedy="Finish it with `dynammo-sim run CONFIG --resume RUN_DIR`",
            )
        config = load_config(path / "config.yaml")
        if config.federation.site_names is not None:
            raise RunError(
                f"the run in {path} was among hospitals, and judging an attack needs their images",
                accepted="a run of simulated sites",
                remedy="Audit a simulation with the same settings, without federation.site_names",
            )
        return cls(path, experiment_from_json(config.canonical_json()), files.started["run"])

    @property
    def config_hash(self) -> str:
        """Return the hash of its configuration."""
        return self.experiment.config.content_hash

    @cached_property
    def sites(self) -> list[Site]:
        """Return its sites, with the memories that they have at the end."""
        count = self.experiment.config.federation.sites
        return [simulated_site(self.experiment, index, self.path / "sites", self.run) for index in range(count)]

    def predictor(self) -> Predictor:
        """Return the deployed model."""
        return Predictor.load(self.path, self.experiment.config.compute.device)

    @cached_property
    def records(self) -> Records:
        """Return the images of all sites, decoded."""
        seen = self.experiment.stream.seen(len(self.experiment.stream) - 1)
        parts: list[Samples] = []
        member, exemplar, owners = [], [], []
        for site in self.sites:
            kept = set(site.memory().record_ids)
            for samples, trained in ((site.train_images(seen), True), (site.test_images(seen), False)):
                parts.append(samples)
                member += [trained] * len(samples)
                exemplar += [trained and record in kept for record in samples.record_ids]
                owners += [site.index] * len(samples)
        return Records(Samples.concatenate(parts), np.array(member), np.array(exemplar), tuple(owners))

    def strangers(self, label: int) -> Samples:
        """Return the test images of a class, of all sites: such as anyone may have."""
        samples = self.records.samples
        outside = torch.from_numpy(~self.records.member) & (samples.labels == label)
        return samples.subset(outside.nonzero().flatten())
