"""A whole consortium on this machine: authority, SuperLink with TLS, registered sites, each a process of its own.

For rehearsals and tests. It is started by the commands that an operator and the engineers use; whatever ends this
process also ends every process of it.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import yaml

from client.commands.init import write_site
from client.consent.approvals import Proposal
from client.consent.settings import load_site
from client.hospital.admission import approve_proposal
from dynammo_core.configuration.config import Config, resolve
from dynammo_core.configuration.settings import WEIGHTS_BY_NAME
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import RunError
from dynammo_core.support.files import write_atomically
from dynammo_core.support.processes import pauses, process_group, process_tree
from server.consortium.consortium import make_consortium
from server.consortium.control import Control
from server.consortium.flower_programs import LOADED
from server.consortium.settings import ServerSettings
from server.consortium.sites import SiteRegister, fingerprint
from server.run_directory.directory import run_place
from simulations.rehearsal.site_export import export_sites

START_SECONDS = 90.0
POLL_SECONDS = 0.1
LOOK_SECONDS, IDLE = 1.0, 0.1
"""Seconds between looks whether a process computes, and the part of a core below which it does not."""


def deployed_config(experiment: Experiment, names: Sequence[str], keys: Sequence[str] | None = None) -> Config[Any]:
    """Return the experiment of a simulation, as the same sites under names run it: the server holds no images.

    Args:
        experiment: the simulation's.
        names: of the sites.
        keys: fingerprints of their keys, which secure aggregation needs.
    """
    data = experiment.config.model_dump(mode="json")
    # Each site holds what the simulation has drawn already.
    data["data"] |= {"train_per_class": None, "test_per_class": None, "validation_per_class": 0, "sets": None}
    data["data"]["classes"] = list(experiment.class_names)
    data["scanners"]["kind"] = "same"
    data["federation"] |= {"site_names": list(names), "sites": len(names), "site_keys": keys and list(keys)}
    return resolve(data, "the rehearsal", {})


def hospital_names(count: int) -> list[str]:
    """Return names from hospital-a to hospital-z, numbered after that."""
    return [f"hospital-{ascii_lowercase[site] if site < 26 else site + 1}" for site in range(count)]


class Deployment:
    """Makes the consortium's folder and each site's; starts and ends their processes."""

    def __init__(self, folder: Path, experiment: Experiment, names: Sequence[str]) -> None:
        self.folder = folder
        self.experiment = experiment
        self.names = tuple(names)
        self._running: dict[str, tuple[ExitStack, subprocess.Popen[str]]] = {}
        self._printed: dict[str, int] = {}
        self.server: ServerSettings = make_consortium(
            folder / "consortium", ["localhost"], port=_free_port(), listen="127.0.0.1"
        )

    def prepare_sites(self) -> Iterator[str]:
        """Write each site's share of the images and its `site.yaml` with keys; yields each name that is done."""
        folders = [self.site_folder(name) / "images" for name in self.names]
        for name, images in zip(self.names, export_sites(self.experiment, folders), strict=True):
            answers = {
                "site": name,
                "superlink": f"localhost:{self.server.port}",
                "data": str(images / "manifest.csv"),
                "ca": str(self.server.ca_certificate),
            }
            settings, _ = write_site(self.site_yaml(name), answers)
            if (weights := self.experiment.config.backbone.weights) not in WEIGHTS_BY_NAME:
                with self.site_yaml(name).open("a", encoding="utf-8") as file:
                    file.write(yaml.safe_dump({"weights": weights}))
            # A simulated site trains on a single image of a class, and the results are to be equal.
            assert settings.policy is not None
            write_atomically(settings.policy, b"fewest_images: 1\n")
            yield name

    def site_folder(self, name: str) -> Path:
        """Return the folder of all that belongs to a site."""
        return self.folder / name

    def site_yaml(self, name: str) -> Path:
        """Return a site's settings."""
        return self.site_folder(name) / "site.yaml"

    def open(self) -> None:
        """Start the SuperLink, register the prepared sites, start them and wait until they are connected.

        Raises:
            RunError: the SuperLink does not start, or a site does not connect.
        """
        self.start_server()
        self.register_sites()
        for name in self.names:
            self.start_site(name)
        control, limit = Control(self.server), time.monotonic() + START_SECONDS
        for pause in pauses(POLL_SECONDS, longest=1.0):
            away = [status for status, _ in control.nodes().values() if status != "online"]
            if not away:
                return
            if time.monotonic() > limit:
                raise RunError(f"{len(away)} sites do not connect", remedy=f"Look at {self.folder}/*.out")
            time.sleep(pause)

    def settle(self) -> None:
        """Wait until no process computes: the server's and the sites' have loaded what they need, as those of years."""
        limit, before = time.monotonic() + START_SECONDS, self._processor_seconds()
        while time.monotonic() < limit:
            time.sleep(LOOK_SECONDS)
            now = self._processor_seconds()
            if all(seconds - before.get(process, 0.0) < IDLE * LOOK_SECONDS for process, seconds in now.items()):
                return
            before = now

    def _processor_seconds(self) -> dict[int, float]:
        """Return what each process has computed so far."""
        seconds = {}
        for name in self._running:
            for process in process_tree(self.process(name).pid):
                with suppress(OSError):
                    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                    seconds[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def loaded(self) -> int:
        """Return the id of the server's process whose copies are ServerApps, while no other run begins."""
        tree = process_tree(self.process("server").pid)
        return next(process for process in tree if LOADED.encode() in Path(f"/proc/{process}/cmdline").read_bytes())

    def start_server(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises:
            RunError: it does not.
        """
        self._start("server", ["dynammo-server", "start", "--folder", str(self.server.folder)])
        context = ssl.create_default_context(cafile=str(self.server.ca_certificate))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        limit = time.monotonic() + START_SECONDS
        while self.process("server").poll() is None and time.monotonic() < limit:
            with suppress(OSError), direct.open(f"https://localhost:{self.server.port}/health", timeout=2):
                return
            time.sleep(POLL_SECONDS)
        raise RunError("the SuperLink did not start", remedy=f"Look at {self.folder / 'server.out'}")

    def register_sites(self) -> None:
        """Register every site's key under its name."""
        register = SiteRegister(self.server, Control(self.server))
        for name in self.names:
            register.add(name, self.site_folder(name) / "site.key.pub")

    def config(self) -> Config[Any]:
        """Return the experiment that names the prepared sites and their keys."""
        keys = [fingerprint(self.site_folder(name) / "site.key.pub") for name in self.names]
        return deployed_config(self.experiment, self.names, keys)

    def approve(self, config: Config[Any], runs: int = 1) -> None:
        """Approve the experiment at each site, as its engineer would, for so many runs."""
        for name in self.names:
            approve_proposal(load_site(self.site_yaml(name)), Proposal.of(config), f"engineer of {name}", runs)

    def run(self, config: Config[Any]) -> Path:
        """Start the experiment by the operator's command, without watching it, and return the run directory.

        Raises:
            RunError: the command refuses; the message is the command's.
        """
        file = self.folder / "experiment.yaml"
        file.write_text(config.to_yaml(), encoding="utf-8")
        options = ["--detach", "--folder", str(self.server.folder)]
        command = [_program("dynammo-server"), "run", str(file), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(" ".join(done.stderr.split()))
        return run_place(self.server.runs, config, None)

    def start_site(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a site, with more in its `environment` if given; it connects when it can."""
        self._start(name, ["dynammo-site", "start", str(self.site_yaml(name))], environment)

    def said(self, name: str) -> str:
        """Return what `server` or a site has printed since its last start."""
        printed = (self.folder / f"{name}.out").read_bytes()[self._printed[name] :]
        return printed.decode(errors="replace")

    def process(self, name: str) -> subprocess.Popen[str]:
        """Return the process of `server` or of a site."""
        return self._running[name][1]

    def end(self, name: str) -> None:
        """End `server` or a site at once, with all of its processes."""
        stack, _ = self._running.pop(name)
        stack.close()

    def close(self) -> None:
        """End everything that still runs: the sites first, each politely, so that nobody waits for nobody."""
        for name in [*self.names, "server"]:
            if name in self._running:
                process = self.process(name)
                process.terminate()
        for name in [*self.names, "server"]:
            if name in self._running:
                with suppress(subprocess.TimeoutExpired):
                    self.process(name).wait(10)
                self.end(name)

    def _start(self, name: str, words: list[str], environment: Mapping[str, str] | None = None) -> None:
        stack = ExitStack()
        output = stack.enter_context((self.folder / f"{name}.out").open("a", encoding="utf-8"))
        command = [_program(words[0]), *words[1:]]
        self._printed[name] = output.tell()
        full = {**os.environ, **(environment or {})}
        process = stack.enter_context(process_group(command, cwd=self.folder, environment=full, output=output))
        self._running[name] = (stack, process)


@contextmanager
def deployment(folder: Path, experiment: Experiment, names: Sequence[str]) -> Iterator[Deployment]:
    """Yield a deployment, and close it again whatever happens."""
    made = Deployment(folder, experiment, names)
    try:
        yield made
    finally:
        made.close()


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
