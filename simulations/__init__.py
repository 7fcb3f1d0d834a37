"""Running experiments: engines, comparisons, rehearsals, attacks; and `run`, the public interface for programs.

`RunResults` reads what a run left, also that of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynammo_core.configuration.config import Config
    from server.run_directory.directory import Listener
    from simulations.run_results import RunResults

__all__ = ["RunResults", "run"]


def __getattr__(name: str) -> Any:
    """Import `RunResults` when it is first used, as it needs NumPy."""
    if name != "RunResults":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from simulations.run_results import RunResults

    return RunResults


def run(
    config: Config[Any] | Path | str,
    *,
    engine: str = "local",
    runs: Path | str = Path("runs"),
    resume: Path | str | None = None,
    listener: Listener = lambda _: None,
    accept_new_code: bool = False,
    track: str | Iterable[str] = (),
) -> RunResults:
    """Run an experiment with simulated sites and return its results, which stand for the run directory, too.

    Args:
        config: what `dynammo_core.load_config` returned, or the YAML file itself.
        engine: `local` runs all sites in this process, `flower` starts `flwr run`; the numbers are the same.
        runs: folder of the run directories.
        resume: directory of a run that was cut off, to go on with it.
        listener: called with each event as it happens, a mapping with the key `event`; what it raises ends the run.
        accept_new_code: go on with a run that other code has begun.
        track: names of trackers that show the run too, such as `mlflow`, or one name.

    Raises:
        DynammoError: the engine or a tracker is unknown, the configuration cannot work, or the run cannot go on.
    """
    from dynammo_core.configuration.config import Config, load_config
    from server.run_directory.directory import run_place
    from server.trackers.tracking import tracking
    from simulations.engines.engines import find_engine
    from simulations.run_results import RunResults

    if not isinstance(config, Config):
        config = load_config(config)
    folder, cut_off = Path(runs), None if resume is None else Path(resume)
    names = [track] if isinstance(track, str) else track
    with tracking(names, config, run_place(folder, config, cut_off), listener) as listen:
        return RunResults(find_engine(engine)(config, folder, cut_off, listen, accept_new_code=accept_new_code))
