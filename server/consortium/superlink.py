"""Start the consortium's SuperLink, with TLS, registered keys only, a lasting database, and the gate in front."""

from __future__ import annotations

import os
import socket
import sys
from datetime import UTC, datetime

from dynammo_core.support.errors import ConfigError
from server.consortium.certificates import expires
from server.consortium.flower_app import flower_environment
from server.consortium.flower_programs import install_programs
from server.consortium.settings import FILE_NAME, ServerSettings
from server.gate.gate import LARGEST_MESSAGE, OPERATORS
from server.gate.operator_token import FILE_VARIABLE, make_token


def become_superlink(settings: ServerSettings) -> None:
    """Replace this process by the SuperLink: a service manager sees one process, and its signals end it cleanly.

    Raises:
        ConfigError: certificates are missing or have expired, others may read the operator's token, or the port is
            taken.
    """
    for file in (settings.ca_certificate, settings.certificate, settings.key):
        if not file.is_file():
            raise ConfigError(
                f"{file} is missing",
                remedy="Create a consortium with `dynammo-server init`, or restore the file from a backup",
            )
    if (end := expires(settings.certificate)) <= datetime.now(UTC):
        raise ConfigError(
            f"the server's certificate expired on {end:%Y-%m-%d}", remedy="Renew it with `dynammo-server renew`"
        )
    _require_port(settings)
    make_token(settings.operator_token)  # for consortia that were made without one
    home = settings.flower_home
    home.mkdir(parents=True, exist_ok=True)
    os.chdir(home)  # Flower's processes look for code in their working directory before anywhere else
    programs = home / "programs"
    install_programs(programs)
    # Flower's own processes on this machine are served as operators are, and show the token as they do.
    operators = dict.fromkeys([*settings.operators, settings.own_address])
    environment = flower_environment(home) | {OPERATORS: ",".join(operators)}
    environment |= {
        FILE_VARIABLE: str(settings.operator_token),
        LARGEST_MESSAGE: str(settings.largest_message_megabytes << 20),
        "PATH": os.pathsep.join([str(programs), environment["PATH"]]),
    }
    environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.5"  # for months, not for one run
    command = [sys.executable, "-P", "-m", "server.gate.gate", "--host", settings.listen, "--port", str(settings.port)]
    command += ["--ssl-ca-certfile", str(settings.ca_certificate), "--ssl-certfile", str(settings.certificate)]
    command += ["--ssl-keyfile", str(settings.key), "--enable-supernode-auth"]
    command += ["--database", str(settings.database), "--log-file", str(settings.log)]
    command += ["--log-rotation-interval-hours", "24", "--log-rotation-backup-count", "30"]
    command += ["--disable-runtime-dependency-installation"]
    os.execve(command[0], command, environment)


def _require_port(settings: ServerSettings) -> None:
    """Refuse a port that is taken: Flower would say so amid a page of its log."""
    family = socket.AF_INET6 if ":" in settings.listen else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.listen, settings.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.listen}:{settings.port} ({error.strerror})",
                remedy="If the server of this consortium runs already, use that; else stop the program that has the "
                f"port, or set another `port` or `listen` in {settings.folder / FILE_NAME}",
            ) from error
