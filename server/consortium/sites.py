"""Keep the register of a consortium's sites: which key may connect, and under which name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from dynammo_core.configuration.settings import SITE_NAME
from dynammo_core.support.errors import CheckpointError, ConfigError, RunError, unknown_name
from dynammo_core.support.files import write_atomically
from dynammo_core.wire.secure_aggregation.offers import fingerprint as fingerprint_of
from server.consortium.control import Control
from server.consortium.settings import ServerSettings

NEW_KEY = (
    "the site makes a new key: beside its site.yaml it moves site.key and site.key.pub away, types "
    "`ssh-keygen -t ecdsa -b 384 -N '' -f site.key`, and sends the new site.key.pub"
)
"""How a site whose key was removed comes back."""


@dataclass(frozen=True)
class RegisteredSite:
    """A site that may connect.

    Attributes:
        node: its id in Flower, which stays the same as long as its key does.
        fingerprint: fingerprint of its public key, as `ssh-keygen -l` prints it.
        added: day on which the operator registered it.
    """

    node: int
    fingerprint: str
    added: str


class SiteRegister:
    """The file `sites.json`, and the SuperLink's own list of keys behind it."""

    def __init__(self, settings: ServerSettings, control: Control) -> None:
        self._file = settings.sites
        self._control = control

    def load(self) -> dict[str, RegisteredSite]:
        """Return the registered sites by name.

        Raises:
            ConfigError: the file is damaged.
        """
        if not self._file.exists():
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            return {name: RegisteredSite(**fields) for name, fields in content.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{self._file} cannot be read ({error})", remedy="Restore it from a backup") from error

    def key_lines(self, names: Sequence[str] = ()) -> list[str]:
        """Return the lines of an experiment that name sites and their key fingerprints; by default, of all sites.

        Raises:
            ConfigError: a name is not registered.
        """
        known = self.load()
        for name in names:
            if name not in known:
                raise ConfigError(
                    unknown_name("site", name, known), accepted=", ".join(known) or "no site is registered yet"
                )
        chosen = list(names) or list(known)
        keys = [f"    - {known[name].fingerprint}  # {name}" for name in chosen]
        return ["federation:", f"  site_names: [{', '.join(chosen)}]", "  site_keys:", *keys]

    def with_status(self) -> dict[str, tuple[RegisteredSite, str, str]]:
        """Return each site with its status (registered, online, offline) and since when it has that status."""
        nodes = self._control.nodes()
        table = {}
        for name, site in self.load().items():
            table[name] = (site, *nodes.get(site.node, ("unknown to the SuperLink", "")))
        return table

    def add(self, name: str, public_key: Path) -> RegisteredSite:
        """Register a site's key under a name.

        Raises:
            ConfigError: the name or key is invalid or already taken.
            RunError: the SuperLink refuses.
        """
        sites = self.load()
        if not re.fullmatch(SITE_NAME, name):
            raise ConfigError(f"{name!r} is not a valid site name", accepted="small letters, digits and hyphens")
        key = _key_in(public_key)
        found = fingerprint_of(key)
        for other, site in sites.items():
            if other == name or site.fingerprint == found:
                raise ConfigError(
                    f"{'the name' if other == name else 'this key'} is taken by the site {other!r}, registered on "
                    f"{site.added} with the key {site.fingerprint}",
                    remedy=f"If the site has a new key, run `dynammo-server sites remove {other}` first"
                    if other == name
                    else f"If that name is wrong, run `dynammo-server sites remove {other}`, and {NEW_KEY}",
                )
        node = self._registered(name, key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        site = RegisteredSite(node, found, datetime.now(UTC).date().isoformat())
        try:
            self._save({**sites, name: site})
        except CheckpointError:
            self._control.unregister(site.node)  # or this key could be neither registered nor removed any more
            raise
        return site

    def remove(self, name: str) -> None:
        """Stop a site from connecting.

        Raises:
            ConfigError: no site has that name.
        """
        sites = self.load()
        if name not in sites:
            raise ConfigError(
                unknown_name("site", name, sites), accepted=", ".join(sites) or "no site is registered yet"
            )
        site = sites.pop(name)
        if site.node in self._control.nodes():
            self._control.unregister(site.node)
        self._save(sites)

    def _registered(self, name: str, public_key: bytes) -> int:
        """Register a key at the SuperLink, which knows every key that it has ever had."""
        try:
            return self._control.register(name, public_key)
        except RunError as error:
            if "key already in use" not in str(error):
                raise
            raise ConfigError(
                "this key was registered before, and a key that was removed stays refused",
                remedy=f"To come back, {NEW_KEY}",
            ) from error

    def _save(self, sites: dict[str, RegisteredSite]) -> None:
        text = json.dumps({name: asdict(site) for name, site in sorted(sites.items())}, indent=2)
        write_atomically(self._file, text.encode() + b"\n")


def fingerprint(public_key: Path) -> str:
    """Return the SHA-256 of an OpenSSH public key, as `ssh-keygen -l` prints it, for people to compare by telephone.

    Raises:
        ConfigError: the file is not an elliptic-curve public key.
    """
    return fingerprint_of(_key_in(public_key))


def _key_in(public_key: Path) -> ec.EllipticCurvePublicKey:
    try:
        key = load_ssh_public_key(public_key.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("it is another kind of key")
        return key
    except (OSError, ValueError, IndexError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{public_key} is not the public key of a site ({error})",
            accepted="the file site.key.pub that `dynammo-site init` made; the private site.key never leaves a site",
        ) from error
