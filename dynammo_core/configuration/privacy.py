"""The section `privacy` of an experiment's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.support.yaml_files import Section

OWN_HEADS_TELL = "tests of personal heads tell of training images that no noise hides; set method.personal: false"
"""Why no mechanism of privacy goes with heads of sites' own."""


class PrivacySettings(Section):
    """Differential privacy: whom the noise protects, how much of it, and what the whole run may cost."""

    mechanism: Literal["none", "example", "client"] = Field(
        default="none",
        description="who is protected; example: each training image, by noise that the site adds; client: each site, "
        "by noise that the server adds",
    )
    unit: Literal["image", "patient"] = Field(
        default="image",
        description="with example: what the noise hides; patient: all images of a patient together, each of which "
        "weighs 1 / (images of the patient); the data have to name patients",
    )
    epsilon: float = Field(
        default=8.0, gt=0, description="privacy budget of the whole run; a site that would exceed it abstains"
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="probability that epsilon does not bound; keep it far below 1 / (images of a site)",
    )
    noise_multiplier: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="standard deviation of the noise divided by the sensitivity; null: the smallest within epsilon",
    )
    clip: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="L2 norm to which a sample's gradient (example) or a site's update (client) is clipped",
    )
    sampling_rate: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="with example: probability that an image (a patient) is in a batch; replaces batch_size",
    )
    count_noise: float = Field(
        default=4.0,
        gt=0,
        le=1e6,
        description="with example: standard deviation of the noise on counts of images (of patients)",
    )
    feature_norm: float = Field(
        default=130.0, ge=1e-6, le=1e6, description="with example, in sums: norm to which features are clipped"
    )
