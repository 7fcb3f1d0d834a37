"""A site's ledger: what its records were charged for in a run, and the counts that it gave out; never paid twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dynammo_core.memory.store import locked_folder
from dynammo_core.privacy.accounting import Charge, site_epsilon
from dynammo_core.support.errors import CheckpointError
from dynammo_core.support.files import write_atomically

LEDGER_FILE = "privacy.json"


@dataclass
class Ledger:
    """All charges of one site in one run, and its census.

    Attributes:
        charges: by the name of the answer that was paid for.
        census: noised number of training images, by class; given out once and used ever after.
    """

    charges: dict[str, Charge] = field(default_factory=dict)
    census: dict[int, int] = field(default_factory=dict)

    def epsilon(self, delta: float, *more: Charge) -> float:
        """What the site has spent, or would have with more charges."""
        return site_epsilon((*self.charges.values(), *more), delta)


class LedgerFile:
    """The ledger on the site's disk, beside its memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE

    def read(self) -> Ledger:
        """The ledger as last written; an empty one before the first charge.

        Raises:
            CheckpointError: it cannot be read. A site that does not know what it has spent must not spend more.
        """
        if not self.path.exists():
            return Ledger()
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            charges = {name: _charge(one) for name, one in content["charges"].items()}
            return Ledger(charges, {int(label): int(count) for label, count in content["census"].items()})
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the privacy ledger {self.path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup: without it this site answers nothing more in this run",
            ) from error

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """The ledger, to be changed inside: written at the end, while no other process can change it.

        Raises:
            CheckpointError: it cannot be read or written.
        """
        with locked_folder(self.path.parent):
            ledger = self.read()
            yield ledger
            charges = {name: asdict(charge) for name, charge in ledger.charges.items()}
            content = json.dumps({"charges": charges, "census": ledger.census}, indent=1)
            write_atomically(self.path, content.encode(), mode=0o600)


def _charge(content: Mapping[str, object]) -> Charge:
    return Charge(**{**content, "classes": tuple(content["classes"])})  # type: ignore[arg-type]
