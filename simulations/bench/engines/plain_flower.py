"""A minimal Flower app that does FedAvg, as Flower's own tutorials write it; copied into an app of its own to run."""

from __future__ import annotations

import itertools
import json
import time
from functools import cache
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulations.bench.engines.job import Job
from simulations.bench.plain_loop import trained_network

client_app = ClientApp()
server_app = ServerApp()


@cache
def the_job(config: str) -> Job:
    """Return the job of a configuration file, once in a process."""
    return Job(Path(config))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train the weights received on this node's images."""
    job, site = the_job(str(context.run_config["config"])), int(context.node_config["partition-id"])
    step = job.steps[int(message.content.config_records["config"]["server-round"]) - 1]  # type: ignore[arg-type]
    model, optimizer = trained_network(job.experiment, step)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict(), strict=False)
    job.learn(model, optimizer, step, site)
    state = model.state_dict()
    arrays = ArrayRecord({name: state[name] for name in job.names(model)})
    metrics = MetricRecord({"num-examples": len(job.sites[site])})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Average over all nodes in each round, and write down how long the rounds took."""
    job, times = the_job(str(context.run_config["config"])), list[float]()
    model, _ = trained_network(job.experiment, job.steps[0])
    state, sites = model.state_dict(), job.experiment.config.federation.sites

    def note(server_round: int, arrays: ArrayRecord) -> None:
        times.append(time.perf_counter())

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    first = ArrayRecord({name: state[name] for name in job.names(model)})
    strategy.start(grid, first, num_rounds=len(job.steps), evaluate_fn=note)
    seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
    Path(str(context.run_config["out"])).write_text(json.dumps(seconds))
