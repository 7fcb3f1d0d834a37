"""What is installed, from where, under which name, and how the services that run it are confined."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import RawConfigParser
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from client.doctor.checks import PACKAGE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = {"site": ("build", "dicom"), "server": ("build", "server")}
UNITS = {name: ROOT / "docs" / name / f"dynammo-{name}.service" for name in LOCKS}
FOREIGN = "dyn" + "ammo"  # another project's on the package index
NOT_AT_A_SITE = {
    *("ray", "matplotlib", "pytest", "torchmetrics", "scikit-learn", "mypy", "ruff"),
    *("scipy", "opacus", "dp-accounting", "hypothesis", "onnx", "medmnist"),
}
NOT_IMPORTED = {"sklearn", "dp_accounting", *(name for name in NOT_AT_A_SITE if "-" not in name)}
"""The modules that these are imported by."""
DIRECTIVES = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter": "@system-service",
    "DevicePolicy": "closed",
    "MemoryMax": "80%",
    "UMask": "0077",
}


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def pins(part: str, file: str = "requirements.txt") -> dict[str, tuple[Version, int]]:
    """Version and number of hashes of each package in a lock file."""
    text = (ROOT / "docs" / part / file).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)( ; [^-]*)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line)
        assert pin is not None, f"this is no pin with hashes: {line[:100]}"
        found[canonicalize_name(pin[1])] = (Version(pin[2]), pin[4].count("--hash"))
    return found


def test_nobody_is_told_to_install_a_strangers_package() -> None:
    wrong = re.compile(rf"""(?:pip|uv|uvx|pipx)\b[^\n]*\b(?:install|add|run)\b[^\n]*?[\s'"=]{FOREIGN}(?![\w./-])""")
    assert wrong.search(f"pip install '{FOREIGN}[onnx]'") and wrong.search(f"pip install {FOREIGN}==1")
    assert not wrong.search(f"pip install --no-deps . # /opt/{FOREIGN}")
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not wrong.search(text), path
        assert f"{FOREIGN}[" not in text.replace(f"federated-{FOREIGN}[", "") or path == Path(__file__), path


def test_the_distribution_has_a_name_of_its_own() -> None:
    assert PROJECT["name"] == PACKAGE == "federated-dynammo"
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]{0,31}", PACKAGE)  # what Flower takes for the name of an app
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        assert Requirement(requirement).name != FOREIGN


@pytest.mark.parametrize("part", LOCKS)
def test_the_lock_file_pins_what_the_project_requires(part: str) -> None:
    locked = pins(part)
    for requirement in [*required(), *(one for extra in LOCKS[part] for one in required(extra))]:
        version, hashes = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
        assert hashes
    assert FOREIGN not in locked and PACKAGE not in locked


def required(extra: str = "") -> list[Requirement]:
    """What the project requires with an extra, those of the extras that it names included."""
    found = []
    for requirement in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        if requirement.name == PACKAGE:
            found += [one for named in requirement.extras for one in required(named)]
        else:
            found.append(requirement)
    return found


def test_a_site_with_differential_privacy_installs_that_and_nothing_else() -> None:
    site, private = pins("site"), pins("site", "requirements-privacy.txt")
    assert site.items() <= private.items()
    assert {"opacus", "dp-accounting", "scipy"} <= private.keys() - site.keys()
    assert not private.keys() & (NOT_AT_A_SITE - {"opacus", "dp-accounting", "scipy"})
    assert all(private[one.name][0] in one.specifier for one in required("privacy"))


def test_the_client_imports_nothing_that_a_site_does_not_install() -> None:
    script = "import client.app, client.cli, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"torch", "flwr", "client"} <= imported
    assert not imported & NOT_IMPORTED


def test_a_site_installs_nothing_that_only_others_need() -> None:
    site, server = pins("site"), pins("server")
    assert not NOT_AT_A_SITE & set(site)
    images = {canonicalize_name(one.name) for one in required("dicom")}  # which never reach a server
    assert set(site) - images <= set(server)
    assert {"ray", "pytest"}.isdisjoint(server)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_installs_at_a_site_what_a_site_needs() -> None:
    for words, install in (([], "-m pip install"), (["TORCH=cpu"], "--torch-backend 'cpu'")):
        command = ["make", "-n", "install-site", *words]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (last,) = [line for line in said.splitlines() if "[dicom]'" in line]
        assert install in last
        assert "dev" not in last.replace(str(ROOT), "")
        assert "du -sh" in said  # it prints the size


@pytest.mark.parametrize("part", LOCKS)
def test_lock_files_name_no_place(part: str) -> None:
    text = (ROOT / "docs" / part / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index" not in text and "--extra-index" not in text and "--find-links" not in text and "-e " not in text


@pytest.mark.parametrize("part", LOCKS)
def test_the_bill_of_materials_lists_the_lock_file(part: str, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("cyclonedx-py")
    if not tool.exists():
        pytest.skip("cyclonedx-bom is not installed")
    lock, made = ROOT / "docs" / part / "requirements.txt", tmp_path / "sbom.json"
    command = [tool, "requirements", lock, "--output-reproducible", "--of", "JSON", "-o", made]
    # Only the larger list is held against CycloneDX's schema, which takes seconds to load.
    subprocess.run([*command, *(["--no-validate"] if part == "site" else [])], check=True, capture_output=True)
    listed = json.loads(made.read_text())
    assert listed["bomFormat"] == "CycloneDX"
    found = {canonicalize_name(one["name"]): Version(one["version"]) for one in listed["components"]}
    assert found == {name: version for name, (version, _) in pins(part).items()}


def test_the_container_is_built_on_a_digest_and_by_hashes() -> None:
    dockerfile = (ROOT / "docs" / "site" / "Dockerfile").read_text()
    assert "ARG BASE\nFROM ${BASE}\n" in dockerfile
    check = re.search(r"grep -Eq '([^']+)'", dockerfile)
    assert check is not None
    good = f"python:3.11-slim@sha256:{'0a' * 32}"
    for base, accepted in ((good, True), ("python:3.11-slim", False), (good[:-1], False), ("", False)):
        done = subprocess.run(["grep", "-Eq", check[1]], input=base, text=True, check=False)
        assert (done.returncode == 0) is accepted, base
    installs = re.findall(r"pip install [^\n]*", dockerfile)
    assert len(installs) == 2
    assert "--require-hashes -r requirements.txt" in installs[0] and "--no-index --no-deps" in installs[1]
    assert "ARG LOCK=requirements.txt\n" in dockerfile
    assert "COPY docs/site/${LOCK} requirements.txt\n" in dockerfile
    copied = ("configs", "client", "dynammo_core", "server", "simulations")
    assert all(f"\nCOPY {folder} {folder}\n" in dockerfile for folder in copied)


@pytest.mark.parametrize("part", LOCKS)
def test_services_are_confined(part: str) -> None:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS[part])
    service = parser["Service"]
    assert {name: service[name] for name in DIRECTIVES} == DIRECTIVES
    assert all(path.startswith(("/var/lib/dynammo", "/var/log/dynammo")) for path in service["ReadWritePaths"].split())
    assert service["User"] not in ("", "root")
    text = UNITS[part].read_text()
    assert f"--require-hashes -r docs/{part}/requirements.txt" in text
    assert "# IPAddressDeny=any\n# IPAddressAllow=" in text
    assert ("DeviceAllow" in service) is (part == "site")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_the_servers_unit_right_and_hardly_exposed(tmp_path: Path) -> None:
    program = "/opt/dynammo/bin/dynammo-server"
    text = UNITS["server"].read_text()
    assert text.count(f"ExecStart={program} start --folder ") == 1
    path = tmp_path / "dynammo-server.service"
    path.write_text(text.replace(f"ExecStart={program} ", f"ExecStart={shutil.which('true')} "))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd before version 250")
    assert done.returncode == 0, done.stdout.splitlines()[-1]  # an exposure above 2.5 of 10 ends with 1
