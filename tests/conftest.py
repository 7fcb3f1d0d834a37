"""What all tests share."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from small_runs import Finished

# The same examples in every run; no deadline, which a busy machine would miss. `make soak` tries many more.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=15)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("repeatable")

WHOLE = re.compile(
    r"^(?:import|from) (?:subprocess|multiprocessing|site_bench|superlinks|ray|onnx|simulations\.(?:rehearsal|bench))\b"
    r"|\b(?:run_small|run_local|run_flower|run_and_report|run_under_display|small_pages|AuditedRun|preloaded|playwright)\b|mark\.slow",
    re.MULTILINE,
)
"""What tells of a file of tests that it starts programs or runs whole experiments of its own."""

TOGETHER = {
    # They start Flower with Ray, or a server with its sites: two at once on two cores outlast what Ray waits for.
    "whole systems": r"doors/|end_to_end/test_(deployment|plain|wheel)|engines/test_flower|attacks/test_foreign",
    # What they share is started once.
    "preloaded processes": r"end_to_end/test_(kill|second)|comparisons/test_(compare\.|process)|test_examples",
    "Flower's SuperLink": r"client/doctor/test_doctor|client/service/test_supernode",
    "our SuperLink": r"server/consortium/test_(sites|flower_programs|launch)|server/gate/test_gate",
}
"""Files of tests, below `tests/`, that one worker runs."""

# Each of the many programs that tests start would compile the whole project for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Tests leave nothing in the cache of whoever runs them; those of the cache itself name a folder of their own.
os.environ["DYNAMMO_IMAGES_MEGABYTES"] = "0"

# No test cuts the power, so none waits for the disk: a small run would do so a hundred times, for a third of its time.
# Tests of how files are written put their own in its place, and programs that tests start wait as ever.
os.fsync = lambda _: None

# Nearly all that collecting makes stays: no garbage is looked for meanwhile, nor among it later.
gc.disable()

# A shell starts its background jobs deaf to Ctrl-C, and what they start inherits that; tests send it to programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out files that start programs or run experiments")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --quick, do not even import what is left out; everything else is for pytest to decide."""
    whole = collection_path.suffix == ".py" and WHOLE.search(collection_path.read_text(encoding="utf-8"))
    return True if whole and config.getoption("--quick") else None


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `cuda` where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch  # not for those who run other tests

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and PyTorch finds none here"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Let one worker more than cores fill the time in which tests wait for programs that they started."""
    return len(os.sched_getaffinity(0)) + (not config.getoption("--quick"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With --dist loadscope, let a worker take a whole file, whose tests share what they make, or files that do."""
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            shared = (name for name, files in TOGETHER.items() if re.match(f"tests/(simulations/)?({files})", nodeid))
            return next(shared, nodeid.partition("::")[0])

    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums of floats repeat bit for bit, whatever the number of cores."""
    import torch  # not by the process that only deals tests out

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(pytestconfig: pytest.Config) -> Finished:
    """The uninterrupted small run of a method, kept for all tests that look at one; not to be changed."""
    from finished_runs import FinishedRuns  # Flower and scikit-learn: seconds that most tests need not pay

    assert pytestconfig.cache is not None
    return cache(FinishedRuns(pytestconfig.cache.mkdir("finished-runs")).of)


@pytest.fixture(scope="session")
def preloaded() -> ForkServerContext:
    """Starts processes that have PyTorch and Flower from the first moment, where that is not what a test is about."""
    context = multiprocessing.get_context("forkserver")
    # PyTorch loads the last of these with the first optimizer, in two seconds.
    context.set_forkserver_preload(
        ["simulations.cli", "simulations.engines.engines", "sklearn.datasets", "torch._dynamo"]
    )
    return context


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two megabytes."""
    disk = tmp_path / "small_disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        said = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        said = str(error)
    if said:
        pytest.skip(f"a file system of two megabytes needs the right to mount: {said}")
    try:
        yield disk
    finally:
        # Lazily: a checkpoint that was loaded from there may still be mapped into memory.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
