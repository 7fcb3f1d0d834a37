"""The folder of a consortium: made once, with its keys and a `server.yaml` that explains itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.files import write_atomically
from dynammo_core.support.yaml_files import validate
from server.consortium.certificates import make_authority, make_server_certificate
from server.consortium.settings import FILE_NAME, ServerSettings, load_server
from server.gate.operator_token import make_token

TEMPLATE = """\
# The server of a consortium. `dynammo-server start` reads it; relative to this folder lie
#   ca.pem        the authority's certificate: every site gets a copy
#   ca.key        the authority's key: needed by `dynammo-server renew` alone; keep a copy off this machine
#   server.pem, server.key   the server's certificate, for a year, and its key
#   operator.token   what commands of this account show to the server; keep it to this account
#   superlink.db  Flower's database; sites.json  the registered sites; runs/  run directories

# Names and addresses by which sites reach this server; its certificate holds for them.
host_names: [{host_names}]
# Address to listen on; 127.0.0.1 for this machine alone.
listen: {listen}
port: {port}
# Addresses from which the holder of operator.token may submit code and register sites; sites never need to be there.
operators: [127.0.0.1, "::1"]
# Most megabytes of one request with weights, 8 to 1024. Flower sends weights in parts of 5 MiB.
largest_message_megabytes: 32
"""


def make_consortium(folder: Path, host_names: Sequence[str], *, port: int, listen: str) -> ServerSettings:
    """Make the folder with its certificate authority, server certificate, operator's token and `server.yaml`.

    Raises:
        ConfigError: there is one already, or a value is not accepted; nothing is overwritten.
    """
    given = {"host_names": tuple(host_names), "port": port, "listen": listen, "folder": folder.absolute()}
    settings = validate(ServerSettings, given, "the new consortium")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}", remedy="Name another one") from error
    if there:
        raise ConfigError(
            f"the folder {folder} is not empty",
            accepted="a folder that is not there yet",
            remedy="Name another one, or use what is there: `dynammo-server start`",
        )
    names = ", ".join(map(json.dumps, host_names))
    make_authority(settings.ca_certificate, settings.ca_key, host_names[0])
    renew(settings)
    make_token(settings.operator_token)
    text = TEMPLATE.format(host_names=names, port=port, listen=json.dumps(listen))
    write_atomically(folder / FILE_NAME, text.encode())
    return load_server(folder)


def renew(settings: ServerSettings) -> None:
    """Make a new server certificate under the same authority; the sites need nothing new.

    Raises:
        ConfigError: the authority cannot sign.
    """
    make_server_certificate(
        settings.certificate,
        settings.key,
        ca_certificate=settings.ca_certificate,
        ca_key=settings.ca_key,
        host_names=(*settings.host_names, settings.own_address),
    )
