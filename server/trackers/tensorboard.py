"""Show a run in TensorBoard, whose event files lie in the run's directory: `tensorboard --logdir runs`.

https://pytorch.org/docs/stable/tensorboard.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from server.trackers.tracker import Ending, TrackedRun

FOLDER = "tensorboard"
RESULTS = ("result/last_accuracy", "result/mean_class_recall", "result/forgetting")
"""Curves whose last values stand beside the parameters in the tab HParams."""


class TensorboardTracker:
    """Writes event files; the model card becomes a text, and other files stay where they are."""

    id = FOLDER

    def __init__(self, run: TrackedRun) -> None:
        again = run.resumed_at + 1 if run.known else None  # from here on points come once more
        self._writer = SummaryWriter(run.directory / FOLDER, purge_step=again)

    def parameters(self, values: Mapping[str, str | float]) -> None:
        """Fill the tab HParams."""
        for summary in hparams(dict(values), dict.fromkeys(RESULTS, None)):
            self._writer.file_writer.add_summary(summary)

    def points(self, at: int, values: Mapping[str, float]) -> None:
        """Add a point to each of some curves."""
        for curve, value in values.items():
            self._writer.add_scalar(curve, value, at)

    def file(self, path: Path) -> None:
        """Show a page in Markdown; TensorBoard keeps no files."""
        if path.suffix == ".md":
            self._writer.add_text(path.stem, path.read_text(encoding="utf-8"))

    def end(self, ending: Ending) -> None:
        """Close the event file."""
        self._writer.close()
