"""Decide which configuration changes a run accepts when it continues: new classes, new sites, and waiting times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dynammo_core.configuration.config import Config, resolve
from dynammo_core.data.task_stream import build_task_stream
from dynammo_core.models import BACKBONES
from dynammo_core.plan import Step
from dynammo_core.support.errors import CheckpointError, ConfigError
from server.run_directory.event_tail import EventTail

OPERATION = (
    *(
        f"federation.{key}"
        for key in ("quorum", "deadline_seconds", "stages", "attempts", "patience_seconds", "evaluate_only")
    ),
    "federation.site_keys",  # a site has a new key: every hospital approves its fingerprint
    "limits.most_images",
    "gate",
)
"""Settings that the operator may change at any time: whose answers a round waits for, and what is deployed."""

GROWTH = (
    *("data.classes", "tasks.sizes", "tasks.class_order", "federation.site_names", "federation.sites"),
    "backbone.changes",
)
"""Settings that may grow at the end: existing classes, tasks and sites keep their numbers, and tasks their networks."""


def forbidden_changes(then: str, now: str) -> list[str]:
    """Return each change between two canonical texts that a run cannot accept: `method.alpha (then 0.5, now 0.7)`.

    A key that is missing in the old text has its default, under which nothing changes.
    """
    try:
        before = resolve(json.loads(then), then, {})
    except ConfigError:  # written by code that knew other keys: they are the difference
        before = None
    changes = _differences(before.model_dump(mode="json") if before else json.loads(then), json.loads(now))
    allowed: tuple[str, ...] = OPERATION
    if before and set(changes) & set(GROWTH) and _grows(before, resolve(json.loads(now), now, {})):
        allowed += GROWTH
    return [
        f"{key} (then {old!r}, now {new!r})"
        for key, (old, new) in changes.items()
        if not any(key == name or key.startswith(f"{name}.") for name in allowed)
    ]


def refuse_another_plan(log: Path, last: Step) -> None:
    """Refuse to continue a run whose last step was another one under the code that did it.

    Args:
        log: `events.jsonl` of the run.
        last: the last step done, as this code plans it.

    Raises:
        CheckpointError: the log says that another stage, task or round was done.
    """
    events: list[dict[str, Any]] = []
    EventTail(log, from_end=False).feed(events.append)
    done = [event for event in events if event["event"] == "step_finished" and event["step"] == last.index]
    now = last.as_fields()
    for then in done[-1:]:
        if any(then[key] != now[key] for key in ("task", "stage", "round")):
            raise CheckpointError(
                f"step {last.index + 1}, the last one done, was the stage {then['stage']!r} of task {then['task'] + 1} "
                f"then, and this version plans the stage {now['stage']!r} of task {last.task + 1} there",
                remedy="Continue with the version that the run was started with, or start a new run, without --resume",
            )


def with_sites(
    config: Config[Any], names: Sequence[str], keys: Mapping[str, str] = MappingProxyType({})
) -> Config[Any]:
    """Return the experiment extended by new sites; existing sites keep their numbers.

    Args:
        config: the experiment.
        names: names of the sites that join.
        keys: fingerprints of the registered sites' keys, by name.

    Raises:
        ConfigError: one of them takes part already, or is named twice.
    """
    if not names:
        return config
    known = config.federation.site_names or ()
    if twice := [name for index, name in enumerate(names) if name in (*known, *names[:index])]:
        raise ConfigError(
            f"the site {twice[0]!r} takes part already, or is named twice",
            accepted=f"sites beside {', '.join(known)}" if known else "each site once",
        )
    data = config.model_dump(mode="json")
    data["federation"]["site_names"] = [*known, *names]
    data["federation"]["sites"] += len(names)
    if config.federation.site_keys is not None:
        joining = [keys[name] for name in names if name in keys]
        data["federation"]["site_keys"] = [*config.federation.site_keys, *joining]
    return resolve(data, "the extended experiment", {})


def with_network(
    config: Config[Any],
    name: str | None = None,
    *,
    weights: str | None = None,
    sha256: str | None = None,
    image_size: int | None = None,
) -> Config[Any]:
    """Return the experiment in which another pretrained network, or another image size, takes over with the last task.

    Args:
        config: the experiment, with the new task in it.
        name: name of the network, as in `backbone.name`; None for the one before, with its weights.
        weights: by name; None for the pretrained ones.
        sha256: hash of its weights.
        image_size: side at which it sees images; None for the one at which they are held.

    Raises:
        ConfigError: there is no such network, it has no pretrained weights and others are not given, the method cannot
            go over to another one, or weights are given for none.
    """
    if name is None and (weights or sha256):
        raise ConfigError(
            f"{weights or sha256} are weights of a network that takes over, and none is named",
            remedy="Name it with --backbone, even if it is the one before",
        )
    tasks = build_task_stream(config.tasks, config.data.classes or (), config.seed).tasks
    data = config.model_dump(mode="json")
    chosen = (
        {"name": name, "sha256": sha256}
        if name is not None
        else config.backbone_of(len(tasks) - 2).model_dump(mode="json")
    )
    chosen |= {"task": len(tasks), "image_size": image_size} | ({"weights": weights} if weights else {})
    data["backbone"]["changes"] = [*data["backbone"]["changes"], chosen]
    extended = resolve(data, "the extended experiment", {})
    if name and name in BACKBONES.built_in and not weights and BACKBONES[name].imagenet is None:
        raise ConfigError(f"{name} has no pretrained weights", remedy="Begin with random ones: --weights random")
    return extended


def _grows(then: Config[Any], now: Config[Any]) -> bool:
    """Return whether classes, tasks and sites of one begin with those of the other, in the same order."""
    if then.data.classes is None or now.data.classes is None:
        return False
    before, after = (build_task_stream(c.tasks, c.data.classes or (), c.seed).tasks for c in (then, now))
    if len(after) > len(before) and then.privacy.mechanism == "client" and then.privacy.noise_multiplier is None:
        return False  # noise is made for the whole plan: what the rounds that are done have cost would be told wrong
    pairs = (
        (then.data.classes, now.data.classes),
        (before, after),
        # Simulated sites share out one data set anew when their number changes.
        (then.federation.site_names or (then.federation.sites,), now.federation.site_names or (now.federation.sites,)),
        tuple([each.backbone_of(task) for task in range(len(before))] for each in (then, now)),
    )
    return all(new[: len(old)] == old for old, new in pairs)


def _differences(then: object, now: object, path: str = "") -> dict[str, tuple[object, object]]:
    """Return the two values of every leaf that differs, by its dotted key."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {
            key: pair
            for name in sorted({*then, *now})
            for key, pair in _differences(then.get(name), now.get(name), f"{path}.{name}" if path else name).items()
        }
    return {} if then == now else {path: (then, now)}
