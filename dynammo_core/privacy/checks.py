"""The check that a network can be trained with DP-SGD: no part of it may mix the images of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.plan import Action, Step
from dynammo_core.privacy.accounting import PRIVACY_EXTRA
from dynammo_core.support.errors import ConfigError
from dynammo_core.wire.protocol import names_up


def check_samples_apart(model: IncrementalModel, steps: Sequence[Step]) -> None:
    """Refuse a network if opacus' validator objects to its trained part, as it does to batch norm.

    The validator knows modules by their exact class; subclasses of batch norm are found here.

    Raises:
        ConfigError: a module mixes samples; the message names it and the reason.
    """
    try:
        from opacus.validators import ModuleValidator  # takes seconds to import: only if needed
    except ModuleNotFoundError as error:
        raise ConfigError(f"differential privacy needs {error.name}", remedy=PRIVACY_EXTRA) from error

    task = max(step.task for step in steps)
    fits = [step.stage for step in steps if step.task == task and step.stage.action is Action.FIT]
    trained = {name for stage in fits for name in names_up(model, stage)}
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if not trained & set(own):
            continue
        was = module.training
        found = [str(error) for error in ModuleValidator.validate(module.train())]
        module.train(was)
        if isinstance(module, _BatchNorm | nn.SyncBatchNorm):
            found.append("batch norm mixes the images of a batch")
        if found:
            raise ConfigError(
                f"privacy.mechanism: {prefix} ({type(module).__name__}) cannot be trained privately: {found[0]}",
                remedy="Set method.norm: group if the method has adapters, or choose another method",
            )
