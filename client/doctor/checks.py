"""What `dynammo-site doctor` looks at on this machine: software, GPU, disks, who may read what, and weights."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from client.consent.settings import SiteSettings
from client.doctor.findings import Finding
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import WEIGHTS_BY_NAME, BackboneSettings
from dynammo_core.support.errors import ConfigError

PACKAGE = "federated-dynammo"
MEGABYTE, GIGABYTE = 10**6, 10**9
SCARCE_DISK, NO_DISK = 5 * GIGABYTE, GIGABYTE // 2
SMALL_GPU = 2 * GIGABYTE


def software() -> Iterator[Finding]:
    """Check Python and the packages against what this package's own metadata require."""
    try:
        about = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Finding("software", "warning", f"{PACKAGE} runs, but is not installed", "Install it by pip")
        return
    python, wanted = platform.python_version(), about["Requires-Python"] or ""
    problems = []
    if not SpecifierSet(wanted).contains(python, prereleases=True):
        problems.append(f"Python {python} is not {wanted}")
    required = [Requirement(line) for line in metadata.requires(PACKAGE) or ()]
    required = [each for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    problems += filter(None, map(package_problem, required))
    if problems:
        yield Finding("software", "wrong", "; ".join(problems), f"Install {PACKAGE} anew, into {sys.prefix}")
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in (PACKAGE, "flwr", "torch"))
    yield Finding("software", "ok", f"Python {python}, {versions}; all {len(required)} packages are as required")


def package_problem(required: Requirement) -> str | None:
    """Return what is wrong with an installed package, or None."""
    try:
        version = metadata.version(required.name)
    except metadata.PackageNotFoundError:
        return f"{required.name} is not installed"
    if required.specifier.contains(version, prereleases=True):
        return None
    return f"{required.name} {version} is not {required.specifier}"


def gpu(settings: SiteSettings) -> Iterator[Finding]:
    """Check that the device which the settings name is there, and how much memory it has left."""
    import torch

    name = settings.device
    if name == "auto" and not torch.cuda.is_available():
        yield Finding("GPU", "note", "none that PyTorch can use: this site computes on the CPU, which is slower")
        return
    device = torch.device("cuda" if name == "auto" else name)
    if device.type != "cuda":
        yield Finding("GPU", "note", f"not used: device is {name!r}")
        return
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        what = f"device is {name!r}, and PyTorch sees {torch.cuda.device_count()} GPUs"
        yield Finding("GPU", "wrong", what, "Install the driver and a PyTorch with CUDA, or set device: auto")
        return
    free, total = torch.cuda.mem_get_info(device)
    what = f"{torch.cuda.get_device_name(device)}, {free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
    if free < SMALL_GPU:
        yield Finding("GPU", "warning", what, "Stop what else runs there, or set device: cpu")
    else:
        yield Finding("GPU", "ok", what)


def disks(settings: SiteSettings, config: Config[Any] | None) -> Iterator[Finding]:
    """Check room and the right to write, for the memory, for Flower's files and for the logs."""
    quota = config.memory.quota_megabytes if config else 0
    features = settings.memory.features_megabytes
    for name, folder, needed in (
        ("memory.folder", settings.memory.folder, int((quota + features) * MEGABYTE)),
        ("state", settings.state, 0),
        ("log", settings.log.parent, 0),
        ("audit", settings.audit.parent, 0),
    ):
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        what = f"{free / GIGABYTE:.1f} GB free for {name} at {folder}"
        if not os.access(there, os.W_OK | os.X_OK):
            remedy = f"Permit the account that runs the site to write there, or correct {name}"
            yield Finding("disk", "wrong", f"{there} may not be written, for {name}", remedy)
        elif free < max(NO_DISK, needed):
            wanted = f"memory.features_megabytes ({features})"
            wanted += f" and the experiment's memory.quota_megabytes ({quota:.0f})" if config else ""
            what += f", less than {wanted} may fill" if free < needed else ""
            yield Finding("disk", "wrong", what, f"Free space, or set {name} to another disk")
        elif free < SCARCE_DISK:
            yield Finding("disk", "warning", what, f"Free space, or set {name} to another disk")
        else:
            yield Finding("disk", "ok", what)


def secrets(settings: SiteSettings) -> Iterator[Finding]:
    """Check that nobody else on this machine can read keys, memory and logs, and that the keys are valid."""
    from client.state.node_key import fingerprint, load_private_key
    from dynammo_core.memory.encryption import load_key

    private: list[tuple[str, Path]] = [("private_key", settings.private_key), ("log", settings.log)]
    private.append(("audit", settings.audit))
    folders = [("memory.folder", settings.memory.folder), ("state", settings.state), ("approvals", settings.approvals)]
    for name, path in folders:
        if path.exists() and not path.is_dir():  # it may be anything, such as the manifest: its mode is not ours
            yield Finding("secrets", "wrong", f"{name}, {path}, is a file", f"Name a folder as {name} in site.yaml")
        else:
            private.append((name, path))
    if settings.memory.key is not None and settings.memory.key.startswith("file:"):
        private.append(("memory.key", Path(settings.memory.key.removeprefix("file:"))))
    for name, path in private:
        if path.exists() and (mode := path.stat().st_mode & 0o777) & 0o077:
            remedy = f"Run `chmod {'700' if path.is_dir() else '600'} {path}`"
            yield Finding("secrets", "wrong", f"others may read or change {name}, {path} (mode {mode:o})", remedy)
    try:
        yield Finding(
            "secrets", "ok", f"private_key has the fingerprint {fingerprint(load_private_key(settings.private_key))}"
        )
    except ConfigError as error:
        yield Finding("secrets", "wrong", str(error))
    if settings.memory.key is None:
        what = "the memory is not encrypted: whoever gets the disk gets the chosen images"
        yield Finding("secrets", "warning", what, "Set memory.key to file:PATH of 32 random bytes in base64")
        return
    load_key(settings.memory.key)
    yield Finding("secrets", "ok", f"memory.key {settings.memory.key} holds a key")


def governance(settings: SiteSettings, config: Config[Any] | None) -> Iterator[Finding]:
    """Check who decides what runs here: a person's approvals, and the site's policy."""
    from client.consent.approvals import Approvals, Proposal
    from client.consent.audit import AuditLog
    from client.consent.policy import load_policy, violations

    approvals = Approvals(settings.approvals)
    if settings.approval == "off":
        what = "approval is off: whatever the operator submits runs on this site's images"
        yield Finding("approval", "warning", what, "Set approval: required")
    elif contradictions := approvals.contradictions(AuditLog(settings.audit)):
        remedy = "Decide anew: `dynammo-site approve`; if no crash is known, somebody cut one of them"
        yield Finding("approval", "wrong", f"the audit log contradicts: {'; '.join(contradictions)}", remedy)
    elif waiting := len(approvals.waiting()):
        what = f"{waiting} experiments wait for an approval"
        yield Finding("approval", "note", what, "Run `dynammo-site approve`")
    else:
        yield Finding("approval", "ok", f"required; {len(approvals.approved())} experiments are approved, none waits")
    policy = load_policy(settings.policy)
    if settings.policy is None:
        what = f"there is none: all is allowed, with {policy.fewest.words()}"
        yield Finding("policy", "note", what)
    elif wrong := violations(policy, config) if config else []:
        yield Finding("policy", "wrong", f"{settings.policy} forbids the experiment: {'; '.join(wrong)}")
    else:
        limits = policy.model_dump(mode="json", exclude_none=True)
        yield Finding("policy", "ok", yaml.safe_dump(limits, default_flow_style=True, width=math.inf).strip("{}\n"))
    if config is not None and settings.approval == "required":
        state = approvals.state(Proposal.of(config))
        verdict = state["verdict"] if state else "not approved yet"
        remedy = "" if verdict == "approved" else "Run `dynammo-site approve --config` with that file"
        yield Finding("approval", "ok" if not remedy else "warning", f"{config.name} is {verdict}", remedy)


def weights(settings: SiteSettings, config: Config[Any]) -> Iterator[Finding]:
    """Check that this site would start from the same backbone as the others."""
    from dynammo_core.models.description import weights_sha256

    networks: list[BackboneSettings] = [*config.backbone.changes]
    first = config.backbone
    if settings.weights is not None:
        networks.insert(0, first.model_copy(update={"weights": settings.weights}))
    elif first.weights in WEIGHTS_BY_NAME:
        networks.insert(0, first)
    else:
        what = f"the experiment takes the weights of {first.name} from a file of its own, {first.weights}"
        yield Finding("weights", "wrong", what, "Name this site's copy of that file as weights in site.yaml")
    for network in networks:
        found = weights_sha256(network)  # refuses another hash than backbone.sha256
        what = f"{network.name} from {network.weights}, SHA-256 {found}"
        if network.sha256:
            yield Finding("weights", "ok", f"{what}, as the experiment requires")
        else:
            yield Finding("weights", "note", f"{what}; the experiment sets no sha256, so no other is refused")


def membership(settings: SiteSettings, config: Config[Any]) -> Iterator[Finding]:
    """Check that the experiment lists this site by its name."""
    names = config.federation.site_names or ()
    if settings.site in names:
        yield Finding("experiment", "ok", f"{config.name} names {settings.site} among its {len(names)} sites")
        return
    if not names:
        what = f"{config.name} names no sites in federation.site_names: it is for a simulation"
        yield Finding("experiment", "warning", what, "Take the configuration that the operator runs")
        return
    what = f"{config.name} does not name the site {settings.site}, but {', '.join(names)}"
    yield Finding("experiment", "wrong", what, "Agree with the operator on this site's name")
