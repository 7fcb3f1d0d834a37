"""Create the folder of a consortium, with its keys and a commented `server.yaml`."""

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
# Settings of a consortium's server, read by `dynammo-server start`. This folder also holds:
#   ca.pem        the authority's certificate; give every site a copy
#   ca.key        the authority's key, needed only by `dynammo-server renew`; store a copy on another machine
#   server.pem, server.key   the server's certificate, valid for a year, and its key
#   operator.token   authenticates this account's commands; no other account may read it
#   superlink.db  Flower's database; sites.json  the registered sites; runs/  run directories

# Names and addresses by which sites reach this server; its certificate is valid for them.
host_names: [{host_names}]
# Address to listen on; 127.0.0.1 accepts connections from this machine only.
listen: {listen}
port: {port}
# Addresses from which the holder of operator.token may submit code and register sites. Sites need not be listed.
operators: [127.0.0.1, "::1"]
# Largest request with weights in megabytes, 8 to 1024. Flower sends weights in parts of 5 MiB.
largest_message_megabytes: 32
# Trackers that show every run, besides its report: tensorboard, mlflow, wandb. No site hears of this.
track: []
"""


def make_consortium(folder: Path, host_names: Sequence[str], *, port: int, listen: str) -> ServerSettings:
    """Create the folder with its certificate authority, server certificate, operator's token and `server.yaml`.

    Raises:
        ConfigError: the folder is not empty, or a value is invalid; nothing is overwritten.
    """
    values = {"host_names": tuple(host_names), "port": port, "listen": listen, "folder": folder.absolute()}
    settings = validate(ServerSettings, values, "the new consortium")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        there = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be created: {error.strerror}", remedy="Choose another one"
        ) from error
    if there:
        raise ConfigError(
            f"the folder {folder} is not empty",
            accepted="a folder that does not exist yet",
            remedy="Choose another folder, or start the consortium that is there: `dynammo-server start`",
        )
    names = ", ".join(map(json.dumps, host_names))
    make_authority(settings.ca_certificate, settings.ca_key, host_names[0])
    renew(settings)
    make_token(settings.operator_token)
    text = TEMPLATE.format(host_names=names, port=port, listen=json.dumps(listen))
    write_atomically(folder / FILE_NAME, text.encode())
    return load_server(folder)


def renew(settings: ServerSettings) -> None:
    """Renew the server certificate under the same authority; sites need not change anything.

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
