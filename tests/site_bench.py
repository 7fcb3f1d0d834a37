"""A real SuperLink on loopback, with certificates of its own authority, and sites that know their way to it."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import tomli_w
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.consent.settings import SiteSettings, load_site
from client.state.node_key import new_key_pair

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
START = "import typer; from client.commands.start import start; typer.run(start)"
FLOWER: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "NO_PROXY": "127.0.0.1,localhost",
}


class Authority:
    """A certificate authority in a folder: ca.pem, and what it signs."""

    def __init__(self, folder: Path, days: int = 90, name: str = "consortium") -> None:
        self.folder, self.path = folder, folder / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(_pem(self._certificate(self._name, self._key, days, names=None)))

    def sign(self, names: list[str], *, days: int = 90) -> tuple[Path, Path]:
        """A server's certificate and its key, for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        certificate, private = self.folder / f"{names[0]}{days}.pem", self.folder / f"{names[0]}{days}.key"
        certificate.write_bytes(_pem(self._certificate(subject, key, days, names)))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        private.write_bytes(key.private_bytes(*form))
        return certificate, private

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, names: list[str] | None
    ) -> x509.Certificate:
        """Valid from a year ago to `days` from now, which may be less than none."""
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(365)).not_valid_after(now + timedelta(days))
        builder = builder.add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_name, names))), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(name: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that runs with TLS and node authentication."""

    address: str
    authority: Authority
    home: Path

    def flwr(self, *words: str) -> str:
        """What Flower's own command line answers about it."""
        command = [sys.executable, "-m", "flwr.cli.app", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def register(self, settings: SiteSettings) -> None:
        """As the operator does with the file that a site sends."""
        self.flwr("supernode", "register", f"{settings.private_key}.pub", "here")

    @property
    def environment(self) -> dict[str, str]:
        return superlink_environment(self.home)


def superlink_environment(home: Path) -> dict[str, str]:
    return {**os.environ, **FLOWER, "FLWR_HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def running_superlink(folder: Path, program: str | None = None) -> Iterator[SuperLink]:
    """A SuperLink, or a Python `program` that is one, on a free port of 127.0.0.1; no process of it is left."""
    authority = Authority(folder / "authority")
    certificate, key = authority.sign(["localhost", "127.0.0.1"])
    home = folder / "home"
    home.mkdir()
    port = free_port()
    link = SuperLink(f"127.0.0.1:{port}", authority, home)
    connection = {"address": link.address, "root-certificates": str(authority.path)}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": "here", "here": connection}}))
    superlink = [str(BIN / "flower-superlink")] if program is None else [sys.executable, "-c", program]
    command = [*superlink, "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--ssl-ca-certfile", str(authority.path), "--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
    with (folder / "superlink.log").open("w") as log:
        process = subprocess.Popen(command, env=link.environment, cwd=home, stdout=log, stderr=log)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, seconds=60)
        assert process.poll() is None, (folder / "superlink.log").read_text()
        yield link
    finally:
        for pid in processes_of(home):  # its ServerApps too, which would take leave of each other for ten seconds
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        wait_until(lambda: not processes_of(home), seconds=30)


class Started:
    """A `dynammo-site start` of its own process, and the lines it has said so far."""

    def __init__(self, site_yaml: Path, *options: str, **environment: str) -> None:
        self.lines: list[str] = []
        own = {"PYTHONUNBUFFERED": "1", "FLWR_HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(site_yaml), *options],
            cwd=site_yaml.parent,
            env={**os.environ, **own, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()

    def said(self, words: str) -> list[str]:
        """The lines that hold these words; waits for the first of them."""
        wait_until(lambda: any(words in line for line in self.lines) or self.process.poll() is not None, seconds=40)
        self._reader.join(0 if self.process.poll() is None else 10)
        found = [line for line in self.lines if words in line]
        assert found, self.lines
        return found

    def ended(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join(10)
        return code


def make_site(folder: Path, superlink: str, authority: Path, **changes: Any) -> tuple[SiteSettings, Path]:
    """A site with a key and the digits as its data; its settings, and where they are written."""
    folder.mkdir(parents=True)
    private, public = new_key_pair("here")
    (folder / "site.key").write_bytes(private)
    (folder / "site.key").chmod(0o600)
    (folder / "site.key.pub").write_bytes(public)
    site = {"site": "here", "superlink": superlink, "ca_certificate": str(authority)}
    site |= {"data": {"dataset": "digits", "root": "."}} | changes
    (folder / "site.yaml").write_text(yaml.safe_dump(site))
    return load_site(folder / "site.yaml"), folder / "site.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def processes_of(home: Path) -> list[int]:
    """Ids of living processes that inherited this FLWR_HOME (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"FLWR_HOME={home}\0".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], Any], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.1)
