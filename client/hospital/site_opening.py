"""How a site is opened for a run: a share of a simulation's data set, or a hospital with all that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from client.consent.policy import Policy
from client.consent.settings import SiteSettings
from client.state.answer_ledger import AnswerLedger
from client.state.feature_files import UNUSED_SECONDS, FeatureFiles
from client.state.known_images import TrainedImages, hash_cache
from client.state.node_key import load_private_key
from client.state.privacy_budget import PrivacyBudget
from client.state.run_folders import IMAGES, run_folder
from client.state.secure_ledger import OpenedSums
from client.state.statistics_file import StatisticsFile
from client.state.sums_note import SumsNote
from client.state.withdrawal import WithdrawalLedger
from client.steps.site import SimulatedSite, Site
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import WEIGHTS_BY_NAME
from dynammo_core.data.decoded.image_cache import ImageCache
from dynammo_core.data.decoded.simulated_cache import simulated_images
from dynammo_core.data.index.contents import HashCache
from dynammo_core.experiment import Experiment
from dynammo_core.memory.encryption import load_key
from dynammo_core.memory.store import MemoryStore
from dynammo_core.support.errors import ConfigError, ProtocolError
from dynammo_core.wire.secure_aggregation.offers import Signatory
from dynammo_core.wire.tensor_store import TensorStore

MEGABYTE = 10**6


def simulated_site(experiment: Experiment, index: int, workspace: Path, run: str) -> Site:
    """Open a share of the one data set of a simulation, with a folder in the run directory."""
    name = f"site-{index:03d}"
    store = MemoryStore(workspace / name, run=run, site=name)
    statistics = StatisticsFile(workspace / name, run=run, site=name)
    return SimulatedSite(experiment, index, store, TensorStore(workspace), statistics, images=simulated_images())


def deployed_site(
    experiment: Experiment, index: int, settings: SiteSettings, policy: Policy, run: str, approved: str
) -> Site:
    """Open a hospital: all images that its `site.yaml` names, and a folder for each run.

    Args:
        experiment: with the hospital's own places in it, as `localised` makes it.
        index: the number of the site that the instruction is for.
        settings: the hospital's `site.yaml`.
        policy: the policy under which it answers.
        run: name of the run.
        approved: SHA-256 of the experiment as a person approves it.

    Raises:
        ProtocolError: the instruction is for another site, or the run's name is invalid.
        ConfigError: one of the site's keys cannot be read.
        MemoryStoreError: what an older version left in its memory cannot be carried over.
    """
    federation = experiment.config.federation
    names = federation.site_names or ()
    if not 0 <= index < len(names) or names[index] != settings.site:
        raise ProtocolError(
            f"the instruction is for site {index} of {list(names)}, and this site is {settings.site!r}",
            remedy="The operator registers each key under the name in its site.yaml, and an experiment lists the names",
        )
    own = settings.memory
    folder = run_folder(own.folder, run)
    key = load_key(own.key) if own.key else None
    signatory = None
    if federation.secure_aggregation:
        signatory = Signatory(load_private_key(settings.private_key), approved, federation.site_keys or ())
    return Site(
        experiment,
        index,
        MemoryStore(folder, run=run, site=settings.site, key=key),
        TensorStore(folder, {"run": run, "site": settings.site}, key),
        StatisticsFile(folder, run=run, site=settings.site, key=key),
        today=datetime.now(UTC).date(),
        ledger=WithdrawalLedger(own.folder),
        trained=TrainedImages(own.folder, site=settings.site, key=key),
        expiry_days=own.expiry_days,
        fewest=policy.fewest,
        images=decoded_images(settings, key),
        sums=SumsNote(folder, run=run, site=settings.site, key=key),
        features=FeatureFiles(folder.parent, own.features_megabytes * MEGABYTE, run=run, site=settings.site, key=key),
        answers=AnswerLedger(folder, own, run=run, site=settings.site, key=key),
        opened_sums=OpenedSums(own.folder, approved),
        signatory=signatory,
        budget=PrivacyBudget(own.folder, policy, run),
    )


def decoded_images(settings: SiteSettings, key: bytes | None) -> ImageCache | None:
    """Return the decoded images that a hospital keeps for all its runs; None if its settings say to keep none.

    Args:
        settings: the hospital's `site.yaml`.
        key: of its memory.
    """
    own = settings.memory
    if not own.images_megabytes:
        return None
    budget = own.images_megabytes * MEGABYTE
    return ImageCache(own.folder / IMAGES, budget, site=settings.site, key=key, longest_unused=UNUSED_SECONDS)


def localised(config: Config[Any], settings: SiteSettings) -> Experiment:
    """Return the experiment with this site's own places in it: no server decides what a site reads from its disk.

    A process that sees the same configuration again gets the same object, with the images that it has read.

    Raises:
        ConfigError: the backbone's weights are a file of the server, and the site names no copy of it.
    """
    if settings.weights is None and config.backbone.weights not in WEIGHTS_BY_NAME:
        raise ConfigError(
            f"the experiment takes the backbone's weights from a file of the server, {config.backbone.weights!r}",
            remedy="Name this site's copy of it as `weights` in site.yaml",
        )
    places = {"dataset": settings.data.dataset, "root": settings.data.root}
    device = {"device": settings.device, "device_megabytes": settings.device_megabytes}
    own = config.model_copy(
        update={
            "data": config.data.model_copy(update=places),
            "compute": config.compute.model_copy(update=device),
            "backbone": config.backbone.model_copy(update={"weights": settings.weights or config.backbone.weights}),
        }
    )
    return shared_experiment(_Named(own.canonical_json(), own, hash_cache(settings.memory)))


@dataclass(frozen=True)
class _Named:
    """A configuration, known by its text alone: not all of its values can be hashed."""

    text: str
    config: Config[Any] = field(compare=False)
    hashes: HashCache


@lru_cache(maxsize=4)
def shared_experiment(named: _Named) -> Experiment:
    """Return the experiment of a configuration, the same object as long as it is among the last four."""
    return Experiment(named.config, named.hashes)
