"""Apps of strangers, submitted to a real SuperLink: a real site executes nothing of them, and says so."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from flwr.cli.build import build_fab_from_disk
from foreign_apps import CLIENT, SERVER, app_of
from site_bench import BIN, Started, SuperLink, processes_of, running_superlink, wait_until

from client.consent.audit import AuditLog
from client.consent.settings import SiteSettings, load_site
from dynammo_core.support.errors import ForeignApp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

BOMB = 2**26
EVIL = """
import os
from pathlib import Path
HOME = Path(os.environ.get("FLWR_HOME", "/"))
if HOME.name == "state":  # at the site, not at the server
    stolen = (HOME.parent / "memory.key").read_text() + (HOME.parent / "site.key").read_text()
    Path({taken!r}).write_text(stolen)
"""
LYING = """
from flwr.superlink.cli import flower_superlink
from flwr.superlink.servicer.control import control_handlers
from flwr.superlink.servicer.fleet import fleet_handlers
honest = fleet_handlers.run_to_proto

def run_to_proto(run):
    said = honest(run)
    if run.fab_id == "agent/stranger":
        said.primary_task_type = "flwr-agentapp"
    if run.fab_id == "named/stranger":
        said.fab_id = "no slash\\nERROR :     forged"
    return said

fleet_handlers.run_to_proto = run_to_proto
control_handlers._get_app_type = lambda config: "flwr-serverapp"
flower_superlink()
"""
"""A SuperLink that tells sites what is not so: that one run is an agent's, and of another a name that is two lines."""
SUBMIT = """
import sys
from pathlib import Path
from importlib import import_module
archive = Path(sys.argv.pop(1)).read_bytes()
import_module("flwr.cli.run.run").build_fab_from_disk = lambda _: archive
from flwr.cli.app import app
app()
"""
"""Flower's own command line, with an archive that was made elsewhere."""


class Attack:
    """One site that `init` and `start` made, and what each foreign app's server was answered."""

    def __init__(self, link: SuperLink, folder: Path) -> None:
        self.link, self.folder, self.taken = link, folder, folder / "taken"
        self.evil = EVIL.format(taken=str(self.taken))
        self.site, self.temporary = folder / "hospital" / "site.yaml", folder / "temporary"
        self.temporary.mkdir()
        given = {"site": "here", "superlink": link.address, "dataset": "digits", "data": ".", "ca": link.authority.path}
        options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        self.site.parent.mkdir()
        init = [str(BIN / "dynammo-site"), "init", "--no-input", "--output", str(self.site), *options]
        subprocess.run(init, check=True, capture_output=True)
        self.settings: SiteSettings = load_site(self.site)
        link.register(self.settings)
        self.before: set[Path] = set()
        self.answers: dict[str, str] = {}

    def submit(self, name: str, app: Path, archive: bytes | None = None) -> None:
        """Run an app, whose folder describes it and whose archive may be another than Flower makes of it."""
        told = self.folder / f"told-{name}"
        words = ["run", str(app), "here", "--run-config", f"node='{self.node}' told='{told}'"]
        if archive is None:
            self.link.flwr(*words)
        else:
            (self.folder / f"{name}.fab").write_bytes(archive)
            command = [sys.executable, "-c", SUBMIT, str(self.folder / f"{name}.fab"), *words]
            done = subprocess.run(command, env=self.link.environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        self.answers[name] = ""

    def run(self) -> None:
        """Start the site, have it asked by each app, ask its port as another account could, and stop it."""
        self.started = Started(self.site, TMPDIR=str(self.temporary))
        try:
            self.node = self.started.said("connected as node")[0].split()[-1]
            self.before = set(self.folder.rglob("*"))
            (self.supernode,) = (pid for pid in processes_of(self.settings.state) if "--superlink" in _words(pid))
            self.at_rest = _peak(self.supernode)
            for name, make in APPS.items():
                folder = self.folder / f"app-{name}"
                self.submit(name, folder, make(self, folder))
            self.uninvited = _knock(self.supernode)
            for name in self.answers:
                told = self.folder / f"told-{name}"
                wait_until(told.exists, seconds=180)
                self.answers[name] = told.read_text()
            self.peak = _peak(self.supernode)
        finally:
            self.started.process.terminate()
            self.started.ended()

    @property
    def landed(self) -> set[Path]:
        """What is new, but for what these tests and the SuperLink wrote."""
        own = {path for name in APPS for path in self.folder.glob(f"*{name}*")}
        new = set(self.folder.rglob("*")) - self.before
        return {path for path in new if not own & {path, *path.parents}}


def _two_files(attack: Attack, folder: Path) -> None:
    """As it was found: the version leads out of FLWR_HOME, and the ClientApp is the app's own."""
    app = SERVER.replace("app = ", "server = ").replace("@app", "@server") + CLIENT + attack.evil
    parts = {"serverapp": "stranger:server", "clientapp": "stranger:app"}
    app_of(folder, {"stranger.py": app}, version="1/../../../out", **parts)


def _our_name(attack: Attack, folder: Path) -> None:
    """It says that it is ours, and brings modules of our names and of those that Python looks for by itself."""
    names = ("client/__init__.py", "client/service/own_app.py", "dynammo_core/__init__.py", "torch/__init__.py")
    files = dict.fromkeys((*names, "sitecustomize.py", "usercustomize.py", "flwr_datasets.py"), attack.evil)
    files |= {"stranger_server.py": SERVER, "client/app.py": attack.evil + CLIENT}
    app_of(folder, files, publisher="dynammo", name="dynammo", clientapp="client.app:app")


def _metadata(attack: Attack, folder: Path) -> bytes:
    """Entry points that `import torch` calls, a .pth file and a symbolic link; Flower's client would not pack them."""
    app_of(folder, {"stranger_server.py": SERVER, "stranger.py": attack.evil + CLIENT}, clientapp="client.app:app")
    points = (
        "[torch.backends]\nx = faulthandler:dump_traceback\ny = stranger:app\n[dynammo.methods]\nz = stranger:app\n"
    )
    link = zipfile.ZipInfo("linked.py")
    link.external_attr = 0o120777 << 16
    return _with(
        build_fab_from_disk(folder),
        {
            "stranger-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n",
            "stranger-1.0.dist-info/entry_points.txt": points,
            "stranger.pth": "import stranger\n",
            link: "/etc/passwd",
        },
    )


def _with(archive: bytes, files: dict[str | zipfile.ZipInfo, str]) -> bytes:
    buffer = BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as opened:
        for name, text in files.items():
            opened.writestr(name, text)
    return buffer.getvalue()


def _bomb(attack: Attack, folder: Path) -> bytes:
    """A description of 64 megabytes in an archive of 64 kilobytes, which Flower's SuperNode reads for its settings."""
    app_of(folder, {"stranger_server.py": SERVER, "stranger.py": attack.evil + CLIENT}, publisher="named")
    buffer = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(build_fab_from_disk(folder))) as plain,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        files = {name: plain.read(name) for name in plain.namelist()}
        description = files["pyproject.toml"]
        files["pyproject.toml"] = description + b"#" * BOMB
        digests = [hashlib.sha256(files[name]).hexdigest() for name in ("pyproject.toml",)]
        before = f"{hashlib.sha256(description).hexdigest()},{8 * len(description)}"
        after = f"{digests[0]},{8 * len(files['pyproject.toml'])}"
        files[".info/CONTENT"] = files[".info/CONTENT"].replace(before.encode(), after.encode())
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


def _agent(attack: Attack, folder: Path) -> None:
    """Flower has another program for the tasks of agents, which unpacks and imports as well."""
    files = {"stranger_server.py": SERVER, "stranger.py": attack.evil + CLIENT}
    app_of(folder, files, publisher="agent", agentapp="stranger:app")


APPS: dict[str, Callable[[Attack, Path], bytes | None]] = {
    "two-files": _two_files,
    "our-name": _our_name,
    "metadata": _metadata,
    "bomb": _bomb,
    "agent": _agent,
}


def _knock(supernode: int) -> list[httpx.Response]:
    """Ask the port of a site's SuperNode for a task and for messages, as whoever can reach it."""
    command = _words(supernode)
    port = command[command.index("--port") + 1]
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    any_task = b"".join(b"\x0a" + bytes([len(kind)]) + kind for kind in (b"flwr-clientapp", b"flwr-agentapp"))
    return [
        httpx.post(f"http://127.0.0.1:{port}/v1/runtime/{path}", content=content, headers=headers, trust_env=False)
        for path, content in {"acquire-task": any_task, "pull-task-input": b"", "pull-messages": b""}.items()
    ]


def _peak(process: int) -> int:
    """The most memory that a process has had, in bytes."""
    (found,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return 1024 * int(found)


def _words(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    with running_superlink(tmp_path_factory.mktemp("superlink"), LYING) as link:
        made = Attack(link, tmp_path_factory.mktemp("attack"))
        made.run()
        yield made


def test_nothing_of_an_app_is_executed(attack: Attack) -> None:
    assert not attack.taken.exists()
    assert "Current thread 0x" not in attack.settings.log.read_text()  # what faulthandler:dump_traceback prints


def test_nothing_of_an_app_lands_anywhere(attack: Attack) -> None:
    known = {attack.settings.log, attack.settings.audit, attack.settings.approvals}
    assert attack.landed <= known
    assert list(attack.temporary.iterdir()) == []


@pytest.mark.parametrize("name", APPS)
def test_its_server_is_told_the_code_of_a_foreign_app(attack: Attack, name: str) -> None:
    assert attack.answers[name] == f"{ForeignApp.code} ForeignApp"


def test_start_says_so_in_a_line_for_each(attack: Attack) -> None:
    said = attack.started.said("refused: the run's app")
    assert len(said) == len(APPS)
    for words in (
        "'test/stranger', version '1/../../../out'",
        "'dynammo/dynammo', version '1.0.0'",
        r"'no slash\nERROR : forged', version '1.0.0'",
    ):
        assert len([line for line in said if words in line]) == 1, said
    assert not any(line.startswith("Flower: forged") for line in attack.started.lines)


def test_audit_log_has_a_line_for_each(attack: Attack) -> None:
    lines = [json.loads(line) for line in attack.settings.audit.read_text().splitlines()]
    refused = [line for line in lines if line["event"] == "refused"]
    assert [(line["code"], line["class"], line["asked"]) for line in refused] == [(111, "ForeignApp", "train")] * len(
        APPS
    )
    assert any("version '1/../../../out'" in line["text"] for line in refused)
    AuditLog(attack.settings.audit).read()


def test_port_of_the_supernode_gives_nothing_to_who_knows_no_secret(attack: Attack) -> None:
    assert [response.status_code for response in attack.uninvited] == [401, 401, 401]


def test_description_of_an_app_is_not_unpacked_by_the_supernode(attack: Attack) -> None:
    assert attack.peak - attack.at_rest < BOMB
