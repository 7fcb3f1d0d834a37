"""Make and load the key that identifies a site: EC P-384 in OpenSSH's formats, as Flower reads them."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dynammo_core.support.errors import ConfigError
from dynammo_core.wire.secure_aggregation.offers import fingerprint as fingerprint_of


def new_key_pair(comment: str) -> tuple[bytes, bytes]:
    """Make a new key; return its private and public file, as `ssh-keygen -t ecdsa -b 384 -N ''` writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, _public_line(key) + f" {comment}\n".encode()


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load the private key of a site.

    Raises:
        ConfigError: no such file, it cannot be read, or it is not what Flower's SuperNode accepts.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"cannot read the private key {path}: {error.strerror}",
            remedy="Create one with `dynammo-site init`, or give the account that runs the site read permission",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "is not a private key in OpenSSH's format without a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _no_key(path, f"is a key of another kind ({type(key).__name__.lstrip('_')})")
    return key


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """Return `SHA256:...` of the public key, as `ssh-keygen -l` prints it, to be compared over the telephone."""
    return fingerprint_of(key.public_key())


def _public_line(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _no_key(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path} {what}",
        accepted="an elliptic-curve key, as `ssh-keygen -t ecdsa -b 384 -N ''` creates it",
        remedy="Create one with `dynammo-site init` in an empty folder, and have the operator register it",
    )
