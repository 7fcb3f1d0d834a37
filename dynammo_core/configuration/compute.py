"""The section `compute` of an experiment: where its arithmetic happens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dynammo_core.support.yaml_files import Section


class ComputeSettings(Section):
    """Where the arithmetic happens. Another number of threads may change the last bits of a result."""

    device: str = Field(
        default="auto", description="device that computes: auto (CUDA if there is a GPU), cpu, cuda or cuda:N"
    )
    threads: int = Field(
        default=1, ge=1, description="CPU threads per site; a different number may change the last bits of a result"
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="type in which networks multiply; bf16: for GPUs, half the memory and many times the speed, fewer "
        "digits; weights, sums, statistics and private training stay in float32",
    )
    device_megabytes: int | None = Field(
        default=None, ge=1, description="memory that a process may take on a GPU, in MB; null: all that is free"
    )
    batch_size_frozen: int | None = Field(
        default=None,
        ge=1,
        description="images at a time that pass through the network where nothing is trained; null: 128, or as many "
        "fewer as keep the largest maps of one layer within 2 GB",
    )
    features: Literal["float32", "float16"] = Field(
        default="float32", description="type of the features that are cached for later rounds"
    )
    feature_megabytes: int = Field(
        default=512,
        ge=0,
        description="memory for cached features in each process, in MB; 0: no cache, with the same results",
    )
