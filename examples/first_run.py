"""Run a small federation, read what it learnt, and ask its model: the Python interface in one script.

python examples/first_run.py [FOLDER]    # leaves a run directory in FOLDER, by default runs/
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch import Tensor

from dynammo_core import Experiment, Predictor, load_config, register_merge_operator
from dynammo_core.data.loading import load_samples
from dynammo_core.merging.task_sets import TaskSets
from simulations import run

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
# A random network of a few thousand weights: seconds instead of minutes, and figures that mean little.
SMALL = {
    "backbone.name": "small_cnn",
    "backbone.weights": "random",
    "data.image_size": 16,
    "data.train_per_class": 40,
    "tasks.sizes": "[2, 2]",
    "federation.sites": 3,
    "method.adapt.rounds": 2,
    "method.balance.rounds": 2,
    "method.merge": "first_and_last",
}


@register_merge_operator("first_and_last")
def first_and_last(given: TaskSets) -> dict[str, Tensor]:
    """Average the adapter sets of the first and the last task."""
    first, last = given.sets[0], given.sets[-1]
    return {name: (first[name] + last[name]) / 2 for name in last}


def main(runs: Path) -> None:
    """Train, then answer for some test images."""
    config = load_config(CONFIG, SMALL)
    results = run(config, runs=runs)
    last = results.summary["last_accuracy"]
    print(f"{config.method.name} at {config.federation.sites} sites: {last:.1f} % after all tasks")

    dataset, predictor = Experiment(config).dataset, Predictor.load(results.directory)
    for name in predictor.classes:
        own = np.flatnonzero(dataset.test.labels == dataset.class_names.index(name))
        images = load_samples(dataset.test, own[:5], config.data.image_size, config.data.fit).images
        answers = predictor.predict(images)
        print(f"images of {name} are taken for", *(predictor.classes[label] for label in answers.labels.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
