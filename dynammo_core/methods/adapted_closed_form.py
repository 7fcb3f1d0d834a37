"""What the methods share that solve their classifier on features of a network with adapters."""

from __future__ import annotations

from dynammo_core.methods.adapters import ADAPTERS, new_adapters, tuned
from dynammo_core.methods.closed_form import ANSWERS, scales
from dynammo_core.methods.settings.adapted_closed_form import AdaptedClosedFormSettings
from dynammo_core.models.incremental_model import IncrementalModel, ParallelBackbones

NEEDED = (ADAPTERS,)
"""Patterns of the tensors that a site must be sent before it can compute features."""
DEPLOYED = (ADAPTERS, *ANSWERS)
"""Patterns of the tensors that prediction needs."""


def grow_adapted_scales(params: AdaptedClosedFormSettings, model: IncrementalModel) -> None:
    """Give the model features with adapters, and beside them, if the settings say so, those without."""
    backbone = tuned(model).backbone
    adapted = scales(params, backbone)
    adapted.adapters = new_adapters(adapted, params)
    beside = params.frozen_beside
    model.extractor = ParallelBackbones([scales(params, backbone), adapted]) if beside else adapted
