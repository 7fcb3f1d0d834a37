"""The choice of the device that computes."""

from __future__ import annotations

import torch

from dynammo_core.support.errors import ConfigError


def find_device(name: str, setting: str = "device") -> torch.device:
    """Return the device of that name: auto (CUDA if available), cpu, cuda or cuda:N; `setting` is where it was named.

    Raises:
        ConfigError: it is not on this machine.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{setting}: {name!r} cannot be used here ({str(error).splitlines()[0]})",
            accepted="auto, cpu, cuda, or cuda:N with the number of a GPU that `nvidia-smi` lists",
        ) from error
    return device
