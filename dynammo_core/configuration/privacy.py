"""The section `privacy` of an experiment's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.configuration.settings import Section


class PrivacySettings(Section):
    """Differential privacy: whom the noise protects, how much of it, and what the whole run may cost."""

    mechanism: Literal["none", "example", "client"] = Field(
        default="none",
        description="example: each site noises what it sends, for each of its training images; client: the server "
        "noises what it merges, for each site",
    )
    epsilon: float = Field(default=8.0, gt=0, description="budget of a whole run; a site that would pass it abstains")
    delta: float = Field(default=1e-5, gt=0, lt=1, description="should be far below 1 / (images of a site)")
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="noise over sensitivity; null: the least that keeps the run within epsilon",
    )
    clip: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="norm that a sample's gradient, or with client a site's update, is shortened to",
    )
    sampling_rate: float = Field(
        default=0.25, gt=0, le=1, description="of example: probability of a sample to be in a batch, not batch_size"
    )
    count_noise: float = Field(
        default=4.0, gt=0, le=1e6, description="of example: deviation of the noise on numbers of images"
    )
    feature_norm: float = Field(
        default=130.0, ge=1e-6, le=1e6, description="of sums: norm that features are shortened to"
    )
