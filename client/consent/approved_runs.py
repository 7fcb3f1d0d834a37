"""Track which runs an approval covers: two runs reveal more about a site's images than one."""

from __future__ import annotations

from collections.abc import Callable

from client.consent.approvals import Approvals, Proposal, write_line
from client.consent.chained_log import read_chain
from dynammo_core.memory.private_files import locked_folder
from dynammo_core.support.errors import CheckpointError, NotApproved

RUNS = "runs.jsonl"


class ApprovedRuns:
    """The list of runs that have answers of this site, in the folder of its approvals."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals
        self._path = approvals.folder / RUNS

    def of(self, proposal: Proposal) -> list[str]:
        """Return the names of an experiment's runs, under any version of the code, in order.

        Raises:
            CheckpointError: the list was changed, or cannot be read.
        """
        names = list[str]()
        try:
            for entry in read_chain(self._path.read_bytes()).entries:
                if entry.fields["experiment"] == proposal.experiment_hash:
                    names = [name for name in names if name != entry.fields.get("instead")]
                    names.append(str(entry.fields["run"]))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the list of runs {self._path} cannot be read ({type(error).__name__}: {error})",
                remedy="Restore it from a backup; without it the site does not know how often an experiment ran",
            ) from error
        return names

    def replaced(self, proposal: Proposal, run: str, began_as_this: Callable[[str], bool]) -> str | None:
        """Return the run whose place another one takes, or None if the approval covers both.

        Args:
            proposal: the experiment.
            run: the name of the run.
            began_as_this: whether another run asked only what this one asks now. Then this one replaces it: another
                site had refused the first step, say, and the operator started again.

        Raises:
            NotApproved: the approval covers other runs.
            CheckpointError: the list cannot be read.
        """
        known = self.of(proposal)
        if run in known or len(known) < (covered := self._approvals.covered(proposal)):
            return None
        before = next((other for other in reversed(known) if began_as_this(other)), None)
        if before is None:
            raise NotApproved(
                f"the experiment {proposal.plain['name']} ({proposal.id[:16]}) is approved for {covered} run"
                f"{'s' if covered > 1 else ''} ({', '.join(known[-3:])}), and {run} is another one",
                remedy="The sums of two runs may differ by a single image. To allow this run all the same: "
                f"`dynammo-site approve --yes {proposal.id[:16]} --runs {len(known) + 1}`",
            )
        return before

    def count(self, proposal: Proposal, run: str, began_as_this: Callable[[str], bool]) -> str | None:
        """Count a run that is about to get its first answer towards the approval; return as `replaced` does.

        Raises:
            NotApproved: the approval covers other runs, one of which was perhaps counted a moment ago.
            CheckpointError: the list cannot be read or written.
        """
        with locked_folder(self._path.parent):
            before = self.replaced(proposal, run, began_as_this)
            if run not in self.of(proposal):
                instead = {"instead": before} if before else {}
                write_line(self._path, {"experiment": proposal.experiment_hash, "run": run, **instead})
        return before
