"""What the methods share that solve their classifier on features of a network with adapters."""

from __future__ import annotations

from pydantic import Field

from dynammo_core.methods.adapters import ADAPTERS, AdapterSettings, new_adapters, tuned
from dynammo_core.methods.closed_form import ANSWERS, ClosedFormSettings, scales
from dynammo_core.models.incremental_model import IncrementalModel, ParallelBackbones

NEEDED = (ADAPTERS,)
"""Patterns of the tensors that a site must be sent before it can compute features."""
DEPLOYED = (ADAPTERS, *ANSWERS)
"""Patterns of the tensors that prediction needs."""


class AdaptedClosedFormSettings(AdapterSettings, ClosedFormSettings):
    """The features with adapters."""

    frozen_beside: bool = Field(
        default=False,
        description="use the bare network's features beside those with adapters, at the cost of a second pass",
    )


def grow_adapted_scales(params: AdaptedClosedFormSettings, model: IncrementalModel) -> None:
    """Give the model features with adapters, and beside them, if the settings say so, those without."""
    backbone = tuned(model).backbone
    adapted = scales(params, backbone)
    adapted.adapters = new_adapters(adapted, params)
    beside = params.frozen_beside
    model.extractor = ParallelBackbones([scales(params, backbone), adapted]) if beside else adapted


def not_accounted(params: AdaptedClosedFormSettings, mechanism: str) -> str:
    """Explain why adapters and sums cannot be private together."""
    return "there is no joint privacy accounting for its adapters and its sums; choose dynammo or streaming_ridge"
