"""The form in which sums for ridge regression travel: Gram matrices whole, or as thin factors where those are shorter.

Both ends know the shape from the numbers of images that an answer reports. A noised Gram matrix has no thin factor, and
under secure aggregation the vectors of all sites must have one length: there Gram matrices travel whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.ridge.gram import factor_of, shortened
from dynammo_core.plan import Stage
from dynammo_core.wire.protocol import Report, names_up, tensors_of
from dynammo_core.wire.report_contents import heads_by_prefix


@dataclass(frozen=True)
class SumsForm:
    """How Gram matrices travel.

    Attributes:
        thin: whether as thin factors where those are shorter.
        rows: most rows of a factor: those that keep most of the scatter, and one of what each feature lost; None for
            all of them, which lose nothing.
        precision: type of a factor's numbers.
    """

    thin: bool = True
    rows: int | None = None
    precision: torch.dtype = torch.float64

    @property
    def loses(self) -> bool:
        """Whether factors lose something on their way: rows, or digits."""
        return self.thin and (self.rows is not None or self.precision != torch.float64)

    def declared(
        self,
        model: IncrementalModel,
        stage: Stage,
        class_counts: Sequence[int] | None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return tensors of the types and shapes of those that a stage sends up, by name; their values mean nothing.

        Args:
            model: a model with the structure of the stage's task.
            stage: the stage.
            class_counts: [C] samples of each class that the tensors speak for; None if they are not reported.
            kept: the model's own tensors that the stage sends up, if the caller has them.
        """
        like = dict(tensors_of(model, names_up(model, stage)) if kept is None else kept)
        if not self.thin or class_counts is None:
            return like
        for prefix, head in heads_by_prefix(model).items():
            for tensor, shape in head.travelling_shapes(class_counts, self.rows).items():
                name = f"{prefix}{tensor}"
                if name in like and shape != like[name].shape:
                    like[name] = torch.empty(shape, dtype=self.precision, device="meta")
        return like

    def sent(self, report: Report, stage: Stage, model: IncrementalModel) -> Report:
        """Return a site's report as it travels: its factors short and rounded as this form says."""
        if report.abstained or not self.loses:
            return report
        weights = dict(report.weights)
        for name, like in self.declared(model, stage, report.numbers.get("class_counts")).items():  # type: ignore[arg-type]
            if name in weights and like.ndim == 2 and like.is_meta:
                tensor, size = weights[name], len(like)
                if tensor.ndim == 1:
                    tensor = factor_of(tensor, weights[name.replace(".gram", ".products")], size)
                weights[name] = shortened(tensor, size).to(self.precision)
        return replace(report, weights=weights)


WHOLE = SumsForm(thin=False)
THIN = SumsForm()


def whole(weights: Mapping[str, Tensor], model: IncrementalModel) -> dict[str, Tensor]:
    """Return tensors as a model keeps them, from tensors as they travelled, by name."""
    found = dict(weights)
    for prefix, head in heads_by_prefix(model).items():
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if own:
            found |= {f"{prefix}{name}": tensor for name, tensor in head.whole(own).items()}
    return found
