"""Enforce a hospital's privacy budget over all runs on its images, whatever the experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from client.consent.policy import Policy
from client.state.privacy_ledger import (
    ANY_PATIENT,
    EVERY_CLASS,
    NamedCharge,
    SiteLedger,
    spent_by_class,
    total_epsilon,
)
from dynammo_core.experiment import Experiment
from dynammo_core.privacy.accounting import Charge
from dynammo_core.privacy.plan import example_charges
from dynammo_core.support.errors import ConfigError

logger = logging.getLogger("dynammo.client")


class PrivacyBudget:
    """The site's ledger under the policy's limit: charges of all runs add up, class by class, at the policy's delta.

    Args:
        memory: the folder of the site's memory.
        policy: says the limit; without `most_epsilon` charges add up and none is refused.
        run: the run that charges are entered for.
    """

    def __init__(self, memory: Path, policy: Policy, run: str = "") -> None:
        self.ledger = SiteLedger(memory)
        self._most, self._delta, self._run = policy.most_epsilon, policy.most_delta, run

    def pay(self, charge: Charge, class_names: Sequence[str]) -> bool:
        """Enter a charge and write it to the disk, unless the total would pass the budget.

        Raises:
            CheckpointError: the ledger cannot be read. A site that does not know what it has spent must not spend more.
        """
        with self.ledger.locked() as before:
            charges = (*before, NamedCharge.of(charge, self._run, class_names))
            if self._most is not None and not (wanted := total_epsilon(charges, self._delta)) <= self._most:
                logger.warning(
                    "abstains from %s: epsilon of all runs here would be %.3f at delta %g, and the policy's "
                    "most_epsilon is %g",
                    charge.stage,
                    wanted,
                    self._delta,
                    self._most,
                )
                return False
            self.ledger.write(charges)
        return True

    def spent(self) -> float:
        """Return epsilon of all runs so far, for the class that was charged most.

        Raises:
            CheckpointError: the ledger cannot be read.
        """
        return total_epsilon(self.ledger.read(), self._delta)

    def words(self) -> str:
        """Return a text on what was spent, of which budget, and by which classes.

        Raises:
            CheckpointError: the ledger cannot be read.
        """
        by_class = spent_by_class(self.ledger.read(), self._delta)
        limit = "without a limit" if self._most is None else f"of {self._most:g}"
        named = {EVERY_CLASS: "any class", ANY_PATIENT: "any patient"}
        listed = ", ".join(f"{named.get(name, name)} {epsilon:.3g}" for name, epsilon in by_class.items())
        spent = max(by_class.values(), default=0.0)
        detail = f": {listed}" if listed else ""
        return f"epsilon {spent:.3g} {limit} spent by all runs, at delta {self._delta:g}{detail}"

    def after(self, experiment: Experiment) -> float | None:
        """Return epsilon after one more complete run of an experiment; None if that charges no image here."""
        if not experiment.protects_images:
            return None
        try:
            noise = experiment.noise_multiplier
        except ConfigError:  # its own budget allows it no step
            return self.spent()
        charges = example_charges(experiment.method, experiment.steps, noise)
        named = [NamedCharge.of(charge, self._run, experiment.class_names) for charge in charges]
        return total_epsilon((*self.ledger.read(), *named), self._delta)
