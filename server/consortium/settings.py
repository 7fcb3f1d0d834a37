"""Read what an operator configures: `server.yaml` in the consortium's folder."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, field_validator

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.yaml_files import Section, read_yaml, validate
from server.trackers import TRACKERS

FILE_NAME = "server.yaml"
HOST_NAME = r"(?=.{1,253}$)[A-Za-z0-9][A-Za-z0-9-]{0,62}(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*"
EVERY_ADDRESS: Mapping[str, str] = MappingProxyType({"0.0.0.0": "127.0.0.1", "::": "::1"})
"""Address at which a program on this machine reaches a server that listens everywhere."""


class ServerSettings(Section):
    """Settings of a consortium's SuperLink; `folder` holds `server.yaml` and other files with fixed names."""

    host_names: tuple[str, ...] = Field(min_length=1, description="names and addresses by which sites reach the server")
    listen: str = Field(default="0.0.0.0", description="address to listen on; 127.0.0.1 accepts this machine only")
    port: int = Field(default=9092, ge=1, le=65535, description="port on which Flower serves all interfaces")
    operators: tuple[str, ...] = Field(
        default=("127.0.0.1", "::1"),
        description="addresses from which the holder of the operator's token may submit runs and register sites",
    )
    largest_message_megabytes: int = Field(
        default=32, ge=8, le=1024, description="largest request with weights; Flower sends parts of 5 MiB"
    )
    track: Annotated[tuple[str, ...], TRACKERS] = Field(
        default=(), description="trackers that show every run: tensorboard, mlflow, wandb"
    )
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("host_names")
    @classmethod
    def _names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _is_address(name) and not re.fullmatch(HOST_NAME, name):
                raise ValueError(f"{name!r} is not a valid host name or address; give it without scheme and port")
        return names

    @field_validator("listen", "operators")
    @classmethod
    def _addresses(cls, addresses: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            if not _is_address(address):
                raise ValueError(f"{address!r} is not a valid address, such as 10.0.0.5")
        return addresses

    @property
    def own_address(self) -> str:
        """Return the addresses from which, and at which, programs on this machine reach the SuperLink."""
        return EVERY_ADDRESS.get(self.listen, self.listen)

    @property
    def address(self) -> str:
        """Return the address and port at which commands on this machine reach the SuperLink."""
        host = self.own_address
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def ca_certificate(self) -> Path:
        """Return the path of the certificate authority's certificate, which every site gets."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Return the path of the authority's key, needed to renew the server's certificate; keep a copy elsewhere."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """Return the path of the server's certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """Return the path of the server's key."""
        return self.folder / "server.key"

    @property
    def operator_token(self) -> Path:
        """Return the path of the token that only operators can read, and that they show to the SuperLink."""
        return self.folder / "operator.token"

    @property
    def database(self) -> Path:
        """Return the path of Flower's database: registered sites, runs and, for a while, the weights sent."""
        return self.folder / "superlink.db"

    @property
    def flower_home(self) -> Path:
        """Return the folder of Flower's own files."""
        return self.folder / "flower"

    @property
    def sites(self) -> Path:
        """Return the path of the list of registered sites."""
        return self.folder / "sites.json"

    @property
    def runs(self) -> Path:
        """Return the folder of run directories."""
        return self.folder / "runs"

    @property
    def log(self) -> Path:
        """Return the path of the SuperLink's log, one file per day."""
        return self.folder / "superlink.log"


def load_server(folder: Path) -> ServerSettings:
    """Read the `server.yaml` of a consortium's folder.

    Raises:
        ConfigError: the file is missing, invalid YAML, or has an invalid key or value; it names file, line and key.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise ConfigError(
            f"there is no consortium in {folder}: {FILE_NAME} is missing",
            remedy="Create one with `dynammo-server init`, or name its folder with --folder or DYNAMMO_CONSORTIUM",
        )
    data, tree = read_yaml(file)
    return validate(ServerSettings, data, str(file), tree).model_copy(update={"folder": folder.absolute()})


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
