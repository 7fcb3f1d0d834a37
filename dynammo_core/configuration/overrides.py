"""Values that a command line or a program sets in place of a file's, and where relative paths start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dynammo_core.configuration.settings import FOLDER, WEIGHTS_BY_NAME
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import parse_yaml

Scalar = str | int | float | bool
PATH_KEYS = (("data", "root"), ("backbone", "weights"))


def placed(overrides: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Resolve relative paths among overrides against the working directory."""
    changes = dict(overrides)
    for key in map(".".join, PATH_KEYS):
        if isinstance(value := changes.get(key), str) and value not in ("", "null"):
            changes[key] = _place(value, Path.cwd())
    return changes


def beside(path: Path, data: Any) -> Any:
    """Resolve relative paths in a file's data against the file's folder, wherever the run is started."""
    for section, key in PATH_KEYS:
        values = data.get(section) if isinstance(data, dict) else None
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = _place(values[key], path.parent)
    return data


def _place(value: str, folder: Path) -> str:
    """Return `value` as an absolute path, unless it names weights or a home folder."""
    if value in WEIGHTS_BY_NAME or value.startswith("~"):
        return value
    return f"{folder.absolute() / value}{FOLDER if value.endswith(FOLDER) else ''}"


def set_leaf(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key, a text read as YAML; of a section, only the keys that are given.

    Raises:
        ConfigError: a text is not YAML, or the key goes through a value.
    """
    found = _parsed(key, value)
    if "." not in key and isinstance(found, dict):
        for inner, own in found.items():
            set_leaf(data, f"{key}.{inner}", own)
        return
    *sections, leaf = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"the override {key!r} goes through {section!r}, which is a value and not a section")
    data[leaf] = found


def _parsed(key: str, value: Scalar) -> Any:
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the value {value!r} of the override {key!r} is not valid YAML: {reason}") from error
