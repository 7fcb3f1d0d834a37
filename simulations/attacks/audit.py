"""All attacks on finished runs, and what they found side by side: as a table for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from simulations.attacks.audited_run import AuditedRun
from simulations.attacks.findings import AttackResult, Finding, Tell
from simulations.attacks.inversion import attack_messages
from simulations.attacks.membership import attack_membership
from simulations.attacks.statistics import attack_statistics

ATTACKS = ("membership", "inversion", "statistics")


@dataclass(frozen=True)
class Audit:
    """What the attacks found in one run, by their names."""

    run: AuditedRun
    outcomes: Mapping[str, AttackResult]

    @property
    def findings(self) -> dict[tuple[str, str, str], Finding]:
        """Return all figures, by what they measure."""
        return {one.key: one for outcome in self.outcomes.values() for one in outcome.findings}

    @property
    def skipped(self) -> dict[str, str]:
        """Return why attacks did not apply, by their names."""
        return {name: outcome.skipped for name, outcome in self.outcomes.items() if outcome.skipped}

    def as_json(self) -> dict[str, Any]:
        """Return the run, its figures, and the attacks that did not apply."""
        return {
            "run": str(self.run.path),
            "name": self.run.experiment.config.name,
            "method": self.run.experiment.config.method.name,
            "config_hash": self.run.config_hash,
            "findings": [asdict(one) for one in self.findings.values()],
            "skipped": self.skipped,
        }


@dataclass(frozen=True)
class Measurement:
    """A line of the table: one measure, of how many records, what guessing gives, and what was found in each run."""

    attack: str
    target: str
    records: str
    measure: str
    guess: str
    found: tuple[str, ...]
    notes: tuple[str, ...]


def audit(
    run: AuditedRun, attacks: Sequence[str], *, shadow_pairs: int, iterations: int, seed: int, tell: Tell
) -> Audit:
    """Attack a run.

    Args:
        run: the run.
        attacks: names of `ATTACKS`.
        shadow_pairs: pairs of shadow models of the membership attack.
        iterations: of each descent to images.
        seed: of all that is random in the attacks.
        tell: receives the progress.

    Raises:
        DynammoError: the run's data, weights or sites cannot serve.
    """
    run.experiment.use_torch()
    table: Mapping[str, Callable[[], AttackResult]] = {
        "membership": partial(attack_membership, run, pairs=shadow_pairs, seed=seed, tell=tell),
        "inversion": partial(attack_messages, run, iterations=iterations, tell=tell),
        "statistics": partial(attack_statistics, run, iterations=iterations, tell=tell),
    }
    return Audit(run, {name: table[name]() for name in attacks})


def rows(audits: Sequence[Audit]) -> list[Measurement]:
    """Return what all audits measured, in the order of the first in which it occurs."""
    found = [audit.findings for audit in audits]
    keys = list(dict.fromkeys(key for own in found for key in own))
    lines = []
    for key in keys:
        known = [own[key] for own in found if key in own]
        guesses = dict.fromkeys(_shown(one.guess, one) for one in known)
        records = dict.fromkeys(_records(one) for one in known)
        values = tuple(_found(own[key]) if key in own else "-" for own in found)
        notes = tuple(dict.fromkeys(one.note for one in known if one.note))
        attack, target, measure = key
        lines.append(Measurement(attack, target, ", ".join(records), measure, ", ".join(guesses), values, notes))
    return lines


def printed(audits: Sequence[Audit], lines: Sequence[Measurement]) -> Table:
    """Return the rows for people, an attack and its target named once."""
    names = [audit.run.path.name for audit in audits]
    drawn = Table("attack", "on", "records", "measure", "guess", *names, box=SIMPLE, padding=(0, 1, 0, 0))
    before: tuple[str, ...] = ()
    for line in lines:
        here = (line.attack, line.target, line.records)
        repeated = here == before
        names_it = ("", "", "") if repeated else here
        drawn.add_row(*names_it, line.measure, line.guess, *line.found)
        before = here
    return drawn


def _found(one: Finding) -> str:
    """Return the value and its interval."""
    text = _shown(one.value, one)
    if one.low is not None and one.high is not None:
        text += f" [{_shown(one.low, one, unit=False)}, {_shown(one.high, one, unit=False)}]"
    return text


def _records(one: Finding) -> str:
    """Format how many records a figure speaks of, with those on the other side of the question behind a colon."""
    counts = (one.members, one.others)
    return " : ".join(str(count) for count in counts if count is not None)


def _shown(value: float, one: Finding, *, unit: bool = True) -> str:
    return f"{value:.1f}{f' {one.unit}' if unit else ''}" if one.unit else f"{value:.3f}"
