"""The ServerApp: reads the run's configuration and hands over to `run`."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from dynammo_core.config import Scalar, leaf_keys, load_config

app = ServerApp()
APP_ROOT = Path(__file__).resolve().parent.parent


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names; an empty value there means «as the YAML file says»."""
    from server.progress import ProgressView
    from server.run import run_experiment

    values = context.run_config
    overrides: dict[str, Scalar] = {key: values[key] for key in leaf_keys() if values.get(key, "") != ""}
    config = load_config(APP_ROOT / str(values["config"]), overrides)
    resume = str(values.get("resume", ""))
    with ProgressView() as view:
        run_experiment(
            grid,
            config,
            runs=Path(str(values.get("runs") or "runs")).absolute(),
            resume=Path(resume).absolute() if resume else None,
            listeners=[view.update],
        )
