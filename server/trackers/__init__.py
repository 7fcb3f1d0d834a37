"""Trackers, which show a run in another program beside its own report, and the table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynammo_core.support.registry import Registry

if TYPE_CHECKING:
    from server.trackers.tracker import Tracker

TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker",
    "dynammo.trackers",
    {
        "tensorboard": "server.trackers.tensorboard:TensorboardTracker",
        "mlflow": "server.trackers.mlflow:MlflowTracker",
        "wandb": "server.trackers.wandb:WandbTracker",
    },
    accepted="a class with what server.trackers.tracker.Tracker has",
)
"""Trackers by name; the module of one needs the package of the extra that has its name."""
