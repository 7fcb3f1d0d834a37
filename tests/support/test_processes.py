"""No child outlives whoever started it, however that one ends; looked at from outside, by process ids."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from dynammo_core.support.processes import is_alive, pauses, process_group

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX's")

# A program with a child of its own, both deaf to polite signals; it tells both ids.
FAMILY = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
code = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code])
with open(sys.argv[1] + ".new", "w") as file:
    print(os.getpid(), child.pid, os.getpgid(0), os.umask(0), os.getcwd(), os.environ["GREETING"], file=file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
print("said ä", flush=True)
time.sleep(600)
"""
PARENT = """
import os, sys, time
from pathlib import Path
from dynammo_core.support.processes import pauses, process_group
told, command = Path(sys.argv[1]), sys.argv[2:]
with process_group(command, cwd=told.parent, environment=dict(os.environ, GREETING="hello"), output=-3) as process:
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 30
    while any(map(alive, pids)):
        assert time.monotonic() < limit, [pid for pid in pids if alive(pid)]
        time.sleep(0.05)


def family_of(told: Path) -> list[int]:
    """Ids of the program and of its child, once they run."""
    limit = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < limit
        time.sleep(0.05)
    return [int(pid) for pid in told.read_text().split()[:2]]


def family(told: Path) -> list[str]:
    return [sys.executable, "-c", FAMILY, str(told)]


def test_the_group_ends_with_the_block(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with process_group(family(told), cwd=tmp_path, environment={**os.environ, "GREETING": "hello"}) as process:
        pids = family_of(told)
        assert all(map(alive, pids))
        pid, _, group, umask, folder, greeting = told.read_text().split()
        assert process.stdout is not None
        assert process.stdout.readline() == "said ä\n"
    assert (int(pid), int(group)) == (process.pid, process.pid)
    assert (int(umask), folder, greeting) == (0o077, str(tmp_path), "hello")
    assert process.returncode == -signal.SIGKILL
    wait_until_gone(pids)


def test_the_group_ends_with_an_error_in_the_block(tmp_path: Path) -> None:
    told = tmp_path / "told"
    environment = {**os.environ, "GREETING": "hello"}
    pids: list[int] = []
    with (
        pytest.raises(KeyboardInterrupt),
        process_group(family(told), cwd=tmp_path, environment=environment, output=subprocess.DEVNULL),
    ):
        pids = family_of(told)
        raise KeyboardInterrupt
    assert len(pids) == 2
    wait_until_gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_group_ends_with_a_parent_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    told = tmp_path / "told"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(told), *family(told)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    try:
        pids = family_of(told)
        assert all(map(alive, pids))
        started = [pid for pid in children_of(parent.pid) if pid not in pids]
        assert started  # the one that watches
    finally:
        parent.send_signal(number)
        parent.wait(30)
    wait_until_gone([*pids, *started])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_ends_by_itself_keeps_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('done'); raise SystemExit(7)"]
    with process_group(command, cwd=tmp_path, environment=os.environ) as process:
        assert process.communicate()[0] == "done\n"
    assert process.returncode == 7


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    before = set(children_of(os.getpid())) if sys.platform == "linux" else set()
    with (
        pytest.raises(FileNotFoundError),
        process_group([str(tmp_path / "nothing")], cwd=tmp_path, environment=os.environ),
    ):
        pass
    if sys.platform == "linux":
        assert set(children_of(os.getpid())) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_who_has_ended_does_not_run_though_nobody_has_asked_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_alive(process.pid)
        process.kill()
        limit = time.monotonic() + 30
        while is_alive(process.pid):
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert process.returncode is None
        os.kill(process.pid, 0)  # which still counts it
    assert not is_alive(process.pid)


COPIES = """
import os, sys
from dynammo_core.support.processes import answer_by_copies
asked = []

def answer(line):
    asked.append(line)
    with open(line, "w") as file:
        print(os.getpid(), *asked, file=file)
    os.kill(os.getpid(), 9) if line == "killed" else sys.exit("a copy failed")

answer_by_copies(answer)
print("ended", os.getpid())
"""


def test_every_copy_starts_alike_and_takes_nothing_down(tmp_path: Path) -> None:
    """What one copy was asked, and how it ended, the next one does not know."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", COPIES]
    done = subprocess.run(
        command, input="one\nkilled\ntwo\n", capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    names = ("one", "killed", "two")
    limit = time.monotonic() + 30
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text().endswith("\n") for name in names):
        assert time.monotonic() < limit  # the last may still be at work
        time.sleep(0.05)
    said = {name: (tmp_path / name).read_text().split() for name in names}
    assert {name: asked for name, (_, *asked) in said.items()} == {name: [name] for name in names}
    assert len({*(words[0] for words in said.values()), done.stdout.split()[1]}) == 4


def test_pauses_grow_with_the_wait() -> None:
    waited = list(islice(pauses(0.1, 2.0), 40))
    assert waited[0] == 0.1
    assert waited[-1] == 2.0
    assert all(later <= 0.1 + 0.2 * sum(waited[:place]) + 1e-9 for place, later in enumerate(waited))
