"""What the methods share that solve their classifier on features of a network with adapters."""

from __future__ import annotations

from pydantic import Field

from dynammo_core.configuration.settings import MethodSettings
from dynammo_core.methods.adapter_tuning import ADAPTERS, AdapterMethod, AdapterSettings
from dynammo_core.methods.closed_form import ANSWERS, ClosedFormMethod, ClosedFormSettings
from dynammo_core.models.incremental_model import IncrementalModel, ParallelBackbones


class AdaptedClosedFormSettings(AdapterSettings, ClosedFormSettings):
    """The features with adapters."""

    frozen_beside: bool = Field(
        default=False, description="the bare network's features beside those with adapters: two passes, two parts"
    )


class AdaptedClosedForm(AdapterMethod, ClosedFormMethod):
    """One adapter set in the network, and one head for all classes on its features."""

    params: AdaptedClosedFormSettings
    deployed = (ADAPTERS, *ANSWERS)
    features_need = (ADAPTERS,)

    @classmethod
    def obstacle_to_privacy(cls, params: MethodSettings, mechanism: str) -> str:
        return "the privacy of its adapters and its sums is not accounted for together; take dynammo or streaming_ridge"

    def grow_extractor(self, model: IncrementalModel) -> None:
        """Features with adapters, and beside them, where the settings say so, those without."""
        backbone = self.tuned(model).backbone
        adapted = self.scales(backbone)
        adapted.adapters = self.new_adapters(adapted)
        beside = self.params.frozen_beside
        model.extractor = ParallelBackbones([self.scales(backbone), adapted]) if beside else adapted
