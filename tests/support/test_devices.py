"""The device that computes: what it says when its memory ends, and copies to it."""

from __future__ import annotations

import pytest
import torch

from dynammo_core.support.devices import find_device, fits, free_memory, limit_memory, moved, shortage_explained
from dynammo_core.support.errors import ConfigError, DeviceMemoryError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_said_with_a_remedy(error: RuntimeError) -> None:
    first = str(error).splitlines()[0].rstrip(".")
    with pytest.raises(DeviceMemoryError) as raised, shortage_explained(CPU):
        raise error
    assert raised.value.code == 113
    assert first in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "raise device_megabytes" in str(raised.value)


def test_a_device_that_is_not_here_is_refused_in_one_sentence() -> None:
    for name in ("mps", "xpu:0", "meta", "gpu", *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])):
        with pytest.raises(
            ConfigError, match=rf"^compute\.device: '{name}' cannot be used here \([^.()]+\)\. Acc"
        ) as said:
            find_device(name, "compute.device")
        assert len(str(said.value)) < 220


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), shortage_explained(CPU):
        raise RuntimeError("shapes differ")


def test_the_cpu_needs_no_copies_and_has_no_bound() -> None:
    tensor = torch.arange(3)
    assert moved(tensor, CPU) is tensor
    limit_memory(CPU, 1)
    assert fits(10**15, CPU, 1)


@pytest.mark.cuda
def test_a_bound_on_a_gpu_holds() -> None:
    device = find_device("cuda")
    held = torch.cuda.memory_reserved(device) // 10**6
    try:
        limit_memory(device, held + 64)
        assert free_memory(device, held + 64) <= (held + 64) * 10**6
        assert not fits(10**9, device, held + 64)
        with pytest.raises(DeviceMemoryError, match="out of memory"), shortage_explained(device):
            torch.empty(10**9, dtype=torch.uint8, device=device)
    finally:
        limit_memory(device, None)
    assert moved(torch.arange(3), device).tolist() == [0, 1, 2]
