"""Identify the code that an experiment runs, so that server and sites can tell whether they run the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config
from dynammo_core.methods import METHODS
from dynammo_core.support.code_files import code_files
from dynammo_core.support.plugins import Plugin
from dynammo_core.support.registry import plugins_in


def plugins_of(config: Config[Any]) -> list[Plugin]:
    """List the code from outside this project that an experiment runs, sorted, each entry once.

    Raises:
        ConfigError: an entry cannot be imported, or its code cannot be compared.
    """
    method = METHODS.plugin(config.method.name)
    return sorted({*plugins_in(config), *([] if method is None else [method])})


def packages_of(config: Config[Any]) -> str:
    """Return the packages from outside that an experiment runs, with their versions, such as `timm 1.0.22`.

    Raises:
        ConfigError: as `plugins_of`.
    """
    return ", ".join(sorted({f"{plugin.package} {plugin.version}".strip() for plugin in plugins_of(config)}))


def code_hash(config: Config[Any]) -> str:
    """Return the SHA-256 of all code that an experiment runs, as 64 hexadecimal digits.

    It is the project's own hash, unless the experiment names something that another package brings, timm's networks
    among them: then it covers that package too, by its name, version and files, so that two machines with different
    versions of it do not agree.

    Raises:
        ConfigError: such a package cannot be imported, or its code cannot be compared.
    """
    if not (plugins := plugins_of(config)):
        return project_hash()
    parts = [project_hash(), *(json.dumps(asdict(plugin), sort_keys=True) for plugin in plugins)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@lru_cache(maxsize=4)
def code_of(experiment: str) -> tuple[str, str]:
    """Return the code that an experiment runs, as when this process was first asked: its hash and `packages_of`.

    Args:
        experiment: as the server wrote it.

    Raises:
        DynammoError: as `config_from_json` and `code_hash`.
    """
    config = config_from_json(experiment)
    return code_hash(config), packages_of(config)


@lru_cache(maxsize=1)
def project_hash() -> str:
    """Return the SHA-256 over the Python files that server and sites share, as they were when this was first asked."""
    return installed_hash()


def installed_hash() -> str:
    """Return the SHA-256 over the Python files that server and sites share, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, file in code_files(Path(__file__).resolve().parent.parent):
        digest.update(f"{name}\0".encode())
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()
