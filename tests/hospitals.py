"""Hospitals without a SuperLink: each has its `site.yaml` and its images, and all are answered in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message
from flwr.serverapp.grid.grid import NodeInfo
from small_runs import small_settings, write_hospitals

from client.app import app
from client.consent.approvals import Approvals, Proposal
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from client.hospital.site_opening import shared_experiment
from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.index.opening import open_dataset
from dynammo_core.support.errors import DynammoError
from dynammo_core.wire.secure_aggregation.offers import fingerprint
from simulations.engines.local_grid import LocalGrid


class Hospitals(LocalGrid):
    """A grid of deployed sites, by name; those named in `away` are not connected.

    At each an engineer approves whatever is to come, unless they are `careful`.
    """

    careful = False

    def __init__(self, files: Mapping[str, Path]) -> None:
        super().__init__(self._at_home, nodes=len(files), run_config={})  # type: ignore[arg-type]
        self.names = dict(zip(self.get_node_ids(), files, strict=True))
        self.files = dict(files)
        self.away: set[str] = set()

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self.names.items() if name not in self.away]

    def _at_home(self, message: Message, context: Context) -> Message:
        site_yaml = self.files[self.names[context.node_id]]
        context.node_config = {"site-config": str(site_yaml)}
        if not self.careful:
            self._approve(site_yaml, message)
        return app(message, context)

    @staticmethod
    def _approve(site_yaml: Path, message: Message) -> None:
        """What is an experiment at all; the app says what is wrong with the rest."""
        with suppress(DynammoError, KeyError):
            text = str(message.content.config_records["instruction"]["experiment"])
            settings, proposal = load_site(site_yaml), Proposal.of(config_from_json(text))
            if Approvals(settings.approvals).state(proposal) is None:
                approve_proposal(settings, proposal, by="engineer", runs=99)


def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """The key by which a hospital is registered, the same for the same name."""
    return ec.derive_private_key(int.from_bytes(hashlib.sha256(name.encode()).digest()), ec.SECP384R1())


def make_hospital(folder: Path, name: str, root: Path, **changes: Any) -> Path:
    """The `site.yaml` of a site that reads the manifest or folder `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.key").write_bytes(
        key_of(name).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    site = {"site": name, "superlink": "localhost:9092", "data": {"root": str(root)}, "device": "cpu"} | changes
    (folder / "policy.yaml").write_text("fewest_images: 1\nsums_of_others: true\n")
    (folder / "site.yaml").write_text(yaml.safe_dump({"policy": "policy.yaml", **site}))
    return folder / "site.yaml"


def make_hospitals(folder: Path, holdings: Mapping[str, Mapping[str, int]]) -> Hospitals:
    """Sites with real digits: training images by name and class, and one test image of each of these classes."""
    return Hospitals(
        {name: make_hospital(folder / name, name, with_images(folder, name, held)) for name, held in holdings.items()}
    )


def with_images(folder: Path, name: str, held: Mapping[str, int]) -> Path:
    """The images of one site, which come in place of those that it had; nothing is kept of these in this process."""
    shared_experiment.cache_clear()
    open_dataset.cache_clear()
    return write_hospitals(folder / name / "images", {name: held})


def deployed(
    names: list[str],
    classes: list[str],
    method: str = "replay",
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config[Any]:
    """The small experiment among these sites, two classes a task."""
    settings = small_settings(method)
    settings["data"] = {"dataset": "manifest", "classes": classes, "image_size": 16}
    settings["federation"] = {"site_names": names, "patience_seconds": 0.2, "deadline_seconds": 60}
    if (sections or {}).get("federation", {}).get("secure_aggregation"):
        settings["federation"]["site_keys"] = [fingerprint(key_of(name).public_key()) for name in names]
    settings["tasks"] = {"sizes": 2}
    for section, values in (sections or {}).items():
        settings[section] = {**settings.get(section, {}), **values}
    return resolve(settings, "deployed.yaml", {})
