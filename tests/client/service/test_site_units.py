"""The files beside the command line, by which a site runs as a service or in a container."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from client.commands.start import start
from client.consent.settings import load_site

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "docs" / "site"
SETTINGS = "/etc/dynammo/site.yaml"
PROGRAM = "/opt/dynammo/bin/dynammo-site"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / "dynammo-site.service")
    return parser


@pytest.fixture
def runnable_unit(tmp_path: Path) -> Path:
    """The unit with a program that exists: the verifier looks for it."""
    text = (UNITS / "dynammo-site.service").read_text()
    assert text.count(f"ExecStart={PROGRAM} ") == 1
    path = tmp_path / "dynammo-site.service"
    path.write_text(text.replace(f"ExecStart={PROGRAM} ", f"ExecStart={shutil.which('true')} "))
    return path


@needs_systemd
def test_systemd_has_nothing_to_object(runnable_unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(runnable_unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_confined(runnable_unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", str(runnable_unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd before version 250")
    assert done.returncode == 0, done.stdout.splitlines()[-1]  # an exposure above 2.5 of 10 ends with 1


def test_the_service_may_write_where_its_settings_say_and_nowhere_else() -> None:
    service, settings = unit()["Service"], load_site(UNITS / "site.yaml")
    writable = [Path(path) for path in service["ReadWritePaths"].split()]
    assert all(len(path.parts) == 4 for path in writable)  # /var/lib/dynammo, not /var
    for path in (settings.memory.folder, settings.state, settings.log, settings.audit):
        assert any(path.is_relative_to(folder) for folder in writable)
    for path in (settings.private_key, settings.ca_certificate, Path(settings.data.root)):
        assert not any(path.is_relative_to(folder) for folder in writable)
    assert (service["ProtectSystem"], service["NoNewPrivileges"], service["Restart"]) == ("strict", "yes", "on-failure")


def test_all_of_them_start_the_site_as_the_command_line_takes_it() -> None:
    program, *words = unit()["Service"]["ExecStart"].split()
    site = yaml.safe_load((UNITS / "compose.yaml").read_text())["services"]["site"]
    dockerfile = (UNITS / "Dockerfile").read_text()
    assert program == PROGRAM
    assert words == site["command"] == ["start", SETTINGS]
    assert 'ENTRYPOINT ["dynammo-site"]\nCMD ["start", "/etc/dynammo/site.yaml"]' in dockerfile
    app = typer.Typer()
    app.command()(start)
    assert get_command(app).make_context("start", words[1:]).params["site_yaml"] == SETTINGS


def test_the_container_runs_as_nobody_special_and_holds_what_it_needs() -> None:
    dockerfile = (UNITS / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.*)$", dockerfile, re.MULTILINE) == ["${BASE}"]
    locks = re.findall(r"LOCK=([\w.-]+)", dockerfile)
    assert locks == ["requirements-privacy.txt", "requirements.txt"]
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["dynammo"]
    for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE):
        for name in line.split()[:-1]:
            for lock in locks if "${LOCK}" in name else [""]:
                assert (ROOT / name.replace("${LOCK}", lock)).is_file() or (ROOT / name).is_dir()
    packages = re.search(r"^packages = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    for name in yaml.safe_load(packages[1]):
        assert f"\nCOPY {name} {name}\n" in dockerfile


def test_the_composition_builds_from_the_checkout_and_keeps_the_site_to_itself() -> None:
    composition = yaml.safe_load((UNITS / "compose.yaml").read_text())
    site = composition["services"]["site"]
    assert (UNITS / site["build"]["context"]).resolve() == ROOT
    assert (ROOT / site["build"]["dockerfile"]).is_file()
    assert "ports" not in site and "deploy" not in site
    assert site["read_only"] and site["cap_drop"] == ["ALL"] and site["init"]
    mounts = {volume.split(":")[-2 if volume.endswith(":ro") else -1]: volume for volume in site["volumes"]}
    assert mounts["/srv/images"].endswith(":ro") and mounts["/etc/dynammo"].endswith(":ro")
    assert {mounts["/var/lib/dynammo"].split(":")[0], mounts["/var/log/dynammo"].split(":")[0]} == set(
        composition["volumes"]
    )
    # the reservation of a GPU is valid once its comment signs are taken away
    text = (UNITS / "compose.yaml").read_text()
    start_of_comment = text.index("    # deploy:")
    uncommented = re.sub(r"^    # ", "    ", text[start_of_comment:], flags=re.MULTILINE)
    reserved = yaml.safe_load(text[:start_of_comment] + uncommented)["services"]["site"]["deploy"]["resources"]
    assert reserved["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
