"""Hold the answers to a question: reports by site, failures, and the bytes that it cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynammo_core.configuration.config import Config
from dynammo_core.support.errors import RunError
from dynammo_core.wire.protocol import Report
from dynammo_core.wire.secure_aggregation.encoding import Total
from server.run_directory.advice import failure_words
from server.run_directory.directory import AGAIN
from server.run_directory.start import approval_of


@dataclass(frozen=True)
class Failure:
    """A site that failed: Flower's or its own error code, and the class of the error, never its text."""

    site: int
    code: int
    error: str


class TooFewAnswers(RunError):  # noqa: N818  # the operator reads this name, and it is not a defect
    """Fewer sites answered a step than it needs.

    Attributes:
        what: which step, how many answered, and how many are needed.
        failures: who failed, and how.
    """

    def __init__(self, what: str, failures: Iterable[Failure], label: Callable[[int], str]) -> None:
        self.what, self.failures = what, tuple(failures)
        named = ", ".join(f"{label(one.site)} ({one.error}, code {one.code})" for one in self.failures)
        remedy = f"Find the reason in the log of each failed site, then {AGAIN}"
        super().__init__(f"{what}; failed: {named}", remedy=remedy)


def required(every: list[Answers], config: Config[Any]) -> list[Answers]:
    """Return the answers to some questions, of which sites have answered one at least.

    Raises:
        RunError: none has; it says why each did not, and what to ask there.
    """
    if any(answers.reports for answers in every):
        return every
    last = {failure.site: vars(failure) for answers in every for failure in answers.failures}
    start = {"name": config.name, "site_names": config.federation.site_names or ()}
    start |= {"approval": approval_of(config)} if config.federation.site_names else {}
    raise RunError(failure_words(start, {"message": "no site answered", "failures": list(last.values())}).rstrip("."))


@dataclass(frozen=True)
class Answers:
    """Reports by site, in ascending order, failures in the order they came, and what the question cost.

    Attributes:
        bytes_down: bytes of the tensors that went to each site.
        bytes_held: bytes of the tensors that were not sent because the site already has them.
        bytes_up: bytes of the tensors that came from each site.
        total: under secure aggregation, all that the server learns.
    """

    reports: dict[int, Report] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: Counter[int] = field(default_factory=Counter)
    bytes_held: Counter[int] = field(default_factory=Counter)
    bytes_up: Counter[int] = field(default_factory=Counter)
    total: Total | None = None

    def fields(self, classes: Sequence[int] = ()) -> dict[str, object]:
        """Describe the answers for the event log; what a sum hides is null.

        Args:
            classes: those whose images are counted, in the order of the counts; none: they are not.
        """
        sites = [
            {
                "site": site,
                "samples": _samples(report),
                "abstained": report.abstained if self.total is None else None,
                "bytes_up": self.bytes_up[site],
                "bytes_down": self.bytes_down[site],
                "metrics": {name: value for name, value in report.numbers.items() if not isinstance(value, list)},
                **_by_class(report.numbers.get("class_counts"), classes),
            }
            for site, report in self.reports.items()
        ]
        total = self.total
        return {"sites": sites} | (
            {"total": {**total.as_fields(), **_by_class(total.class_counts, classes)}} if total else {}
        )

    def brought(self, site: int) -> bool:
        """Tell whether a site answered and did not abstain."""
        return site in self.reports and not self.reports[site].abstained

    @property
    def loss(self) -> float:
        """Return the mean loss over the images of all sites; nan if none told."""
        if self.total:
            return math.nan if self.total.loss is None else self.total.loss
        told = [report for report in self.reports.values() if not report.abstained]
        losses = [(float(report.numbers["loss"]), sum(report.class_counts)) for report in told]  # type: ignore[arg-type]
        images = sum(count for _, count in losses)
        return sum(loss * count for loss, count in losses) / images if images else math.nan

    def table(self, name: str, sites: Iterable[int], classes: int) -> list[list[int]]:
        """Return a table of a test's counts, [C * C] for each site, or for all together if that is all there is.

        A site that did not answer has counted nothing.
        """
        if self.total:
            return [self.total.counts[name]]
        empty = [0] * classes**2
        counts = {site: report.numbers.get(name, empty) for site, report in self.reports.items()}
        return [list(counts.get(site, empty)) for site in sites]  # type: ignore[arg-type]

    def then(self, later: Answers) -> Answers:
        """Return these answers with those to a second question, which went to the sites that failed in this one."""
        reports = dict(sorted({**self.reports, **later.reports}.items()))
        return Answers(
            reports,
            later.failures,
            self.bytes_down + later.bytes_down,
            self.bytes_held + later.bytes_held,
            self.bytes_up + later.bytes_up,
        )


def _samples(report: Report) -> int | None:
    counts = report.numbers.get("class_counts")
    return sum(counts) if isinstance(counts, list) else 0 if report.abstained else None


def _by_class(counts: object, classes: Sequence[int]) -> dict[str, list[int]]:
    return {"class_counts": [counts[label] for label in classes]} if classes and isinstance(counts, list) else {}
