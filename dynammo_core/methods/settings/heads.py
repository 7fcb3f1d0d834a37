"""Settings of the methods with one growing classifier."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.configuration.settings import WEIGHTS_BY_NAME, BackboneSettings, MethodSettings

RANDOM = WEIGHTS_BY_NAME[-1]


class SingleHeadSettings(MethodSettings):
    """One training stage over the whole network."""

    train: Optimisation = Optimisation(rounds=10, epochs=1, learning_rate=0.003)
    batch_norm: Literal["frozen", "averaged", "reestimated"] = Field(
        default="frozen",
        description="statistics that batch norm divides by; frozen: the pretrained network's, in training too; "
        "averaged: each batch's, and in tests the sites' running ones, pooled; reestimated: as averaged, but estimated "
        "anew after the last round; default with one site, and for random weights, which have none to freeze: averaged",
    )

    def fitted_to(self, backbone: BackboneSettings, federation: FederationSettings) -> Self:
        """Return these parameters, with statistics averaged by default at one site and for random weights."""
        usual = backbone.weights == RANDOM or federation.sites == 1
        if "batch_norm" in self.model_fields_set or not usual:
            return self
        return self.model_copy(update={"batch_norm": "averaged"})


class RehearsalSettings(SingleHeadSettings):
    """Which of the two answers that a rehearsed network can give is taken."""

    prediction: Literal["classifier", "nearest_mean"] = Field(
        default="classifier",
        description="how to predict; classifier: by the trained head; nearest_mean: the class whose exemplars have the "
        "nearest mean feature (iCaRL)",
    )


class JointSettings(SingleHeadSettings):
    """As for one training stage, but long enough for a network that starts anew in each task."""

    train: Optimisation = Optimisation(rounds=25, epochs=1, learning_rate=0.01, schedule="cosine")
    restart: bool = Field(
        default=True,
        description="start each task from the pretrained network; false: from the network that the task before left",
    )


class ICaRLSettings(RehearsalSettings):
    """As for rehearsal, but the paper answers by the nearest mean; `classifier` asks the sigmoid outputs instead."""

    prediction: Literal["classifier", "nearest_mean"] = "nearest_mean"


class WASettings(RehearsalSettings):
    """How soft the teacher's answers are."""

    temperature: float = Field(default=2.0, gt=0, description="temperature of the distillation loss")


class LUCIRSettings(RehearsalSettings):
    """The paper's constants, except the scale."""

    scale: float = Field(default=10.0, gt=0, description="initial value of the learnable scale of the cosines")
    less_forget: float = Field(
        default=5.0, ge=0, description="base weight of the less-forget constraint (lambda_base in the paper)"
    )
    margin: float = Field(default=0.5, ge=0, description="margin of the ranking loss (m in the paper)")
    hard_negatives: int = Field(
        default=2, ge=1, description="number of new classes that each exemplar is pushed away from (K in the paper)"
    )


class PODNetSettings(RehearsalSettings):
    """The paper's constants for CIFAR100, except scale and margin."""

    proxies: int = Field(default=10, ge=1, description="proxies per class (K in the paper)")
    scale: float = Field(default=10.0, gt=0, description="initial value of the learnable scale (eta in the paper)")
    margin: float = Field(
        default=0.06, ge=0, description="margin of the classification loss, as a similarity (delta in the paper)"
    )
    spatial: float = Field(
        default=3.0, ge=0, description="weight of the distance between pooled maps (lambda_c in the paper)"
    )
    flat: float = Field(
        default=1.0, ge=0, description="weight of the distance between features (lambda_f in the paper)"
    )
    balance: Optimisation = Optimisation(epochs=20, learning_rate=0.01)


class DarkERSettings(RehearsalSettings):
    """Weights of the two terms of replay."""

    alpha: float = Field(
        default=0.2, ge=0, description="weight of the distance to the stored logits (alpha in the paper)"
    )
    beta: float = Field(default=0.5, ge=0, description="weight of the exemplars' cross-entropy (beta in the paper)")


class DynamicERSettings(RehearsalSettings):
    """Stage 1 trains the newest network and the classifier; stage 2 trains the classifier anew."""

    auxiliary: float = Field(default=1.0, ge=0, description="weight of the auxiliary loss (lambda_a in the paper)")
    temperature: float = Field(default=5.0, gt=0, description="temperature of the softmax in stage 2")
    balance: Optimisation = Optimisation(epochs=30, learning_rate=0.1)
