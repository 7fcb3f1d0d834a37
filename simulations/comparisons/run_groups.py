"""Any run directories as a comparison: runs that differ in nothing but their seed are one row, named by the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynammo_core.configuration.config import Config, load_config
from dynammo_core.scoring.leading import recall_leads
from dynammo_core.support.errors import RunError
from server.run_directory.run_files import RunFiles
from simulations.comparisons.compare import METRICS, Group, Json, Metric, Result

Leaves = dict[str, Any]


def measure(asked: str | None, summaries: Iterable[Json]) -> Metric:
    """Return the metric that is asked for; by default the mean class recall where any run's classes are uneven."""
    uneven = any(recall_leads(summary) for summary in summaries)
    return METRICS[asked or ("mean_class_recall" if uneven else "accuracy")]


def summaries_of(groups: Iterable[Group]) -> list[Json]:
    """List the summaries of all runs of the groups."""
    return [result.summary for group in groups for result in group.results]


def groups_of(directories: Sequence[Path]) -> tuple[list[Group], list[str]]:
    """Return the rows and settings of finished runs, in the order of their names, and which runs are not finished.

    A row is named after its method, and after the keys of the section `method` in which runs of that method differ; a
    setting after the keys of other sections in which the runs differ.

    Raises:
        RunError: there is no run in a directory, or two directories hold the same experiment.
        ConfigError: this version does not accept the settings of a run.
    """
    runs = {directory: RunFiles.read(directory) for directory in directories}
    configs = {directory: load_config(directory / "config.yaml") for directory in directories}
    leaves = {directory: dict(leaves_of(config.model_dump(mode="json"))) for directory, config in configs.items()}
    shared = {key for own in leaves.values() for key in own if not key.startswith("method.")} - {"name", "seed"}
    conditions = _differing(leaves.values(), shared)
    found: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    unfinished = []
    for directory, config in configs.items():
        alike = [own for own in leaves.values() if own["method.name"] == config.method.name]
        own_keys = _differing(alike, {key for own in alike for key in own if key.startswith("method.")})
        row = _named(leaves[directory], own_keys, "method.")
        label = _named(leaves[directory], conditions, ""), config.method.name + (f" ({row})" if row else "")
        if (same := found[label].setdefault(config.seed, directory)) is not directory:
            raise RunError(f"{same} and {directory} are runs of the same experiment", remedy="Give only one of them")
        if runs[directory].summary.get("status") != "completed":
            unfinished.append(str(directory))
    order = {setting: place for place, setting in enumerate(dict.fromkeys(setting for setting, _ in found))}
    groups = [
        _group(setting, row, {seed: (by_seed[seed], configs[by_seed[seed]], runs[by_seed[seed]]) for seed in by_seed})
        for (setting, row), by_seed in sorted(found.items(), key=lambda item: order[item[0][0]])
    ]
    return groups, unfinished


def _group(setting: str, row: str, by_seed: Mapping[int, tuple[Path, Config[Any], RunFiles]]) -> Group:
    _, config, _ = next(iter(by_seed.values()))
    results = [
        Result(seed, directory, run.summary)
        for seed, (directory, _, run) in sorted(by_seed.items())
        if run.summary.get("status") == "completed"
    ]
    return Group(setting, row, config.method, tuple(results))


def leaves_of(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of nested settings with its dotted key."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differing(runs: Iterable[Leaves], keys: Iterable[str]) -> list[str]:
    known = list(runs)
    return sorted(key for key in keys if any(own.get(key) != known[0].get(key) for own in known))


def _named(leaves: Leaves, keys: Iterable[str], prefix: str) -> str:
    return ", ".join(f"{key.removeprefix(prefix)}={leaves.get(key)}" for key in keys)
