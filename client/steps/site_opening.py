"""Which site an instruction is for: a share of a simulation's data set, or this hospital with all that it keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.consent.approvals import Proposal
from client.consent.policy import load_policy
from client.consent.settings import SiteSettings, load_site
from client.service.node_key import load_private_key
from client.state.answer_ledger import AnswerLedger
from client.state.feature_files import FeatureFiles
from client.state.privacy_budget import PrivacyBudget
from client.state.run_folders import run_folder
from client.state.secure_ledger import OpenedSums
from client.state.statistics_file import StatisticsFile
from client.state.sums_note import SumsNote
from client.state.withdrawal import WithdrawalLedger
from client.steps.site import Site
from dynammo_core.configuration.config import WEIGHTS_BY_NAME
from dynammo_core.experiment import Experiment, config_from_json, experiment_from_json
from dynammo_core.memory.encryption import load_key
from dynammo_core.memory.store import MemoryStore
from dynammo_core.support.errors import ConfigError, ProtocolError
from dynammo_core.wire.protocol import Instruction
from dynammo_core.wire.secure_aggregation.offers import Signatory
from dynammo_core.wire.tensor_store import TensorStore

MEGABYTE = 10**6


def simulated_site(experiment: Experiment, index: int, workspace: Path, run: str) -> Site:
    """A share of the one data set of a simulation, and a folder in the run directory."""
    name = f"site-{index:03d}"
    store = MemoryStore(workspace / name, run=run, site=name)
    statistics = StatisticsFile(workspace / name, run=run, site=name)
    return Site(experiment, index, store, TensorStore(workspace), statistics, share=index)


def deployed_site(experiment: Experiment, index: int, settings: SiteSettings, run: str, approved: str) -> Site:
    """A hospital: all images that its `site.yaml` names, and a folder for each run; `approved` hashes the experiment.

    Raises:
        ProtocolError: the instruction is for another site, or names a run in a way that is no name.
        ConfigError: one of its keys, or its policy, cannot be read.
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
    policy = load_policy(settings.policy)
    signatory = None
    if federation.secure_aggregation:
        signatory = Signatory(load_private_key(settings.private_key), approved, federation.site_keys or ())
    return Site(
        experiment,
        index,
        MemoryStore(folder, run=run, site=settings.site, key=key),
        TensorStore(folder),
        StatisticsFile(folder, run=run, site=settings.site, key=key),
        today=datetime.now(UTC).date(),
        ledger=WithdrawalLedger(own.folder),
        expiry_days=own.expiry_days,
        fewest_images=policy.fewest_images,
        sums=SumsNote(folder, run=run, site=settings.site, key=key),
        features=FeatureFiles(folder.parent, own.features_megabytes * MEGABYTE, run=run, site=settings.site, key=key),
        answers=AnswerLedger(folder, own, run=run, site=settings.site, key=key),
        opened_sums=OpenedSums(own.folder, approved),
        signatory=signatory,
        budget=PrivacyBudget(own.folder, policy, run),
    )


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
    approved = Proposal.of(config_from_json(instruction.experiment)).experiment_hash
    return deployed_site(experiment, instruction.site, settings, instruction.run, approved)


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
