"""Class-incremental learning with merged adapters: the method, in PyTorch, independent of Flower.

The names below are the public interface for programs. Each is imported when it is first used, so that
`import dynammo_core` costs no PyTorch. An experiment is run by `simulations.run`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynammo_core.aggregation import register_aggregator
    from dynammo_core.configuration.config import Config, load_config
    from dynammo_core.data.datasets import register_dataset
    from dynammo_core.deployed.predictor import Predictor
    from dynammo_core.experiment import Experiment
    from dynammo_core.merging import register_merge_operator
    from dynammo_core.methods import register_method
    from dynammo_core.models import register_backbone
    from dynammo_core.support.errors import DynammoError

__version__ = "0.1.0"
__all__ = [
    "Config",
    "DynammoError",
    "Experiment",
    "Predictor",
    "load_config",
    "register_aggregator",
    "register_backbone",
    "register_dataset",
    "register_merge_operator",
    "register_method",
]
_HOMES = {
    "Config": "dynammo_core.configuration.config",
    "DynammoError": "dynammo_core.support.errors",
    "Experiment": "dynammo_core.experiment",
    "Predictor": "dynammo_core.deployed.predictor",
    "load_config": "dynammo_core.configuration.config",
    "register_aggregator": "dynammo_core.aggregation",
    "register_backbone": "dynammo_core.models",
    "register_dataset": "dynammo_core.data.datasets",
    "register_merge_operator": "dynammo_core.merging",
    "register_method": "dynammo_core.methods",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
