"""Models of shapes alone, which `validate`, costs and descriptions build: nothing of them outlives them.

PyTorch computes with a tensor of shapes alone as if it held numbers, and the outcome is whatever was in memory. So a
constant or a kept value that was first made among shapes would make all later results of the process wrong, silently.
"""

from __future__ import annotations

import subprocess
import sys

BUILD_ALL = """
import gc, importlib, pkgutil
from contextlib import suppress
import torch, torchmetrics  # it has constants of its own

with torch.device("meta"):
    import client, dynammo_core, server, simulations
    for package in (dynammo_core, client, server, simulations):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                with suppress(ModuleNotFoundError):  # of a tracker that is not installed
                    importlib.import_module(module.name)
    from dynammo_core.methods import METHODS
    from dynammo_core.models.description import untrained
    from dynammo_core.scoring.cost import trained_after
    built = 0
    for name in METHODS.built_in:
        params = METHODS[name].Params.model_validate({"name": name})
        for network in ("small_cnn", "timm/test_vit"):
            built += bool(trained_after(2, params, untrained(network, 160), 2).state_dict())
    low_rank = METHODS["dynammo"].Params.model_validate({"name": "dynammo", "adapter": "lora"})
    built += bool(trained_after(2, low_rank, untrained("timm/test_vit", 160), 2).state_dict())
gc.collect()
left = [tuple(one.shape) for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.is_meta]
print(built, left)
"""


def test_no_tensor_of_shapes_alone_outlives_the_models_that_it_was_made_for() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BUILD_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built, left = done.stdout.splitlines()[-1].split(" ", 1)
    assert int(built) > 30
    assert left == "[]"
