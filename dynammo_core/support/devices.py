"""The device that computes: its choice, its memory, and copies to it that nobody waits for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dynammo_core.support.errors import ConfigError, DeviceMemoryError

KINDS = ("cpu", "cuda")
SHARE = 0.5
"""The part of a device's free memory that inputs may take for a whole round; the network needs the rest."""
SHORTAGES = ("out of memory", "ALLOC_FAILED")
"""What messages say of too little memory on a device, where the error has no type of its own."""


def find_device(name: str, setting: str = "device") -> torch.device:
    """Return the device of that name: auto (CUDA if available), cpu, cuda or cuda:N; `setting` is where it was named.

    A GPU is returned with its number, which PyTorch's questions about memory need.

    Raises:
        ConfigError: it is not on this machine.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    kind = wanted.split(":")[0]
    if kind not in KINDS:
        raise _unusable(setting, name, "this project computes on CPUs and on GPUs of CUDA")
    if kind == "cuda" and not torch.cuda.is_available():
        raise _unusable(setting, name, "PyTorch finds no GPU of CUDA on this machine")
    try:
        return torch.empty(0, device=torch.device(wanted)).device
    except (RuntimeError, AssertionError) as error:
        raise _unusable(setting, name, str(error).splitlines()[0]) from error


def _unusable(setting: str, name: str, why: str) -> ConfigError:
    return ConfigError(
        f"{setting}: {name!r} cannot be used here ({why})",
        accepted="auto, cpu, cuda, or cuda:N with the number of a GPU that `nvidia-smi` lists",
    )


def repeat_bits() -> None:
    """Make the same computation on the same device give the same bits each time, where its libraries can."""
    # Read when the first matrix product prepares the library on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As torch.use_deterministic_algorithms does, which also loads a compiler that nothing here needs, for a second.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # debugging aid, slow
    torch.backends.cudnn.benchmark = False


def limit_memory(device: torch.device, megabytes: int | None) -> None:
    """Bound the memory that this process takes on a GPU, in MB; None, or another device, sets no bound."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        part = 1.0 if megabytes is None else min(1.0, megabytes * 10**6 / total)
        torch.cuda.set_per_process_memory_fraction(part, device)


def free_memory(device: torch.device, megabytes: int | None) -> int:
    """Return the bytes that this process may still take on a GPU within its bound, in MB; None is no bound."""
    held = torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
    return free if megabytes is None else min(free, megabytes * 10**6 - held)


def fits(nbytes: int, device: torch.device, megabytes: int | None) -> bool:
    """Tell whether so many bytes of inputs may stand on a device for a whole round; on the CPU they stand already."""
    return device.type != "cuda" or nbytes <= SHARE * free_memory(device, megabytes)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the program goes on while a GPU copies it from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def shortage_explained(device: torch.device) -> Iterator[None]:
    """Raise an error that a person can act on if what is done inside finds too little memory on a device.

    Raises:
        DeviceMemoryError: it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in SHORTAGES):
            raise
        raise DeviceMemoryError(
            f"{device}: too little memory ({str(error).splitlines()[0]})",
            remedy="Stop what else runs on the device, raise device_megabytes if it is set, lower "
            "compute.feature_megabytes, compute.batch_size_frozen, data.image_size or the stage's batch_size, set "
            "compute.precision: bf16, or compute on the CPU",
        ) from error
