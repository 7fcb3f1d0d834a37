"""How one training stage descends, and which of its rounds it keeps."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dynammo_core.support.yaml_files import Section


class Optimisation(Section):
    """How one training stage is optimised: rounds across sites, local epochs, optimiser and schedule."""

    rounds: int = Field(default=1, ge=1, description="number of rounds of averaging across sites")
    epochs: int = Field(default=5, ge=1, description="number of local epochs in each round")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="optimiser; its state is reset in each round")
    learning_rate: float = Field(default=0.01, gt=0, description="initial learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD; adam ignores it")
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 penalty on the trained weights")
    batch_size: int = Field(
        default=32, ge=2, description="samples per batch; at least 2, since one image has no batch statistics"
    )
    schedule: Literal["constant", "step", "cosine"] = Field(
        default="constant", description="learning-rate schedule over all rounds of the stage"
    )
    milestones: tuple[int, ...] = Field(
        default=(), description="epochs after which the schedule step divides the learning rate by 10"
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="round whose weights the stage ends with; best: the one with the least loss on images that each "
        "site holds out of its training images, at one more exchange a round",
    )
    held_out: float = Field(default=0.2, gt=0, lt=1, description="share of patients that keep: best holds out")
    patience: int | None = Field(
        default=None, ge=1, description="rounds without a better one after which keep: best ends the stage; null: none"
    )

    @model_validator(mode="after")
    def _patient_for_the_best(self) -> Self:
        if self.patience is not None and self.keep != "best":
            raise ValueError(f"patience {self.patience} waits for a better round, and keep: {self.keep} looks for none")
        return self
