"""Keep on disk what rounding lost from a site's answers, to add it to the next round of the same stage."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dynammo_core.best_round import first_step
from dynammo_core.deployed.model_files import tensors_sha256
from dynammo_core.memory.private_files import write_private
from dynammo_core.plan import Step

FILE = "feedback.safetensors"
BEFORE, AFTER = "before/", "after/"
logger = logging.getLogger("dynammo.error_feedback")


class ErrorFeedback:
    """One file, replaced as a whole, with what was lost before the last step and after it.

    So a step that is asked for again starts from where it started the first time, gives the same answer, and advances
    the errors once. A new stage starts without any: it learns something else, or from other weights.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def before(self, step: Step) -> dict[str, Tensor]:
        """Return what rounding has lost before a step, by the name of the tensor that lost it."""
        try:
            with safe_open(self.path, framework="pt") as file:
                notes = json.loads(file.metadata()["notes"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if notes["sha256"] != tensors_sha256(tensors):
                raise ValueError("its content does not match its checksum")
            first, last = int(notes["first"]), int(notes["last"])
        except FileNotFoundError:
            return {}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is damaged, so its rounding errors are ignored: %s", self.path, error)
            return {}
        if first != first_step(step) or last > step.index:
            return {}
        part = BEFORE if last == step.index else AFTER
        return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}

    def keep(self, step: Step, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Record what was lost before a step and after it; only then may its answer leave.

        Raises:
            DynammoError: it cannot be written.
        """
        tensors = {f"{BEFORE}{name}": tensor.contiguous() for name, tensor in before.items()}
        tensors |= {f"{AFTER}{name}": tensor.contiguous() for name, tensor in after.items()}
        notes = {"first": first_step(step), "last": step.index, "sha256": tensors_sha256(tensors)}
        write_private(self.path, save(tensors, metadata={"notes": json.dumps(notes)}))
