"""The consortium's certificate authority, and the server certificate that sites check against it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dynammo_core.support.errors import ConfigError
from dynammo_core.support.files import write_atomically

CA_DAYS, SERVER_DAYS = 3650, 397
"""Sites install the authority's certificate once, so the server's can be renewed each year without them."""

LOOPBACK = ("localhost", "127.0.0.1")
LONGEST_NAME = 64
"""Most characters in a subject (X.520's bound of a common name); certificates list host names without that bound."""


def make_authority(certificate: Path, key: Path, name: str) -> None:
    """Create a certificate authority that signs only this consortium's server certificates."""
    private = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"certificate authority of {name}")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates alone
    built = (
        _builder(subject, subject, private.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA384())
    )
    _write_key(key, private)
    write_atomically(certificate, built.public_bytes(serialization.Encoding.PEM))


def make_server_certificate(
    certificate: Path,
    key: Path,
    *,
    ca_certificate: Path,
    ca_key: Path,
    host_names: Sequence[str],
    days: int = SERVER_DAYS,
) -> None:
    """Create or renew the server's certificate, valid for its names and addresses and for this machine.

    Raises:
        ConfigError: the authority's files are missing or do not match.
    """
    try:
        authority = x509.load_pem_x509_certificate(ca_certificate.read_bytes())
        signer = serialization.load_pem_private_key(ca_key.read_bytes(), password=None)
        if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
            raise ValueError("the key does not belong to the certificate")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"the certificate authority {ca_certificate} with {ca_key} cannot sign ({error})",
            remedy="Restore its key; a new authority would need a new ca.pem at every site",
        ) from error
    private = ec.generate_private_key(ec.SECP384R1())
    names = [_general_name(name) for name in dict.fromkeys([*host_names, *LOOPBACK])]
    subject = _subject(host_names[0])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)  # signs its handshake
    built = (
        _builder(subject, authority.subject, private.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_key(key, private)
    write_atomically(certificate, built.public_bytes(serialization.Encoding.PEM))


def expires(certificate: Path) -> datetime:
    """Return when a certificate expires.

    Raises:
        ConfigError: the file is not a valid certificate.
    """
    return _certificate(certificate).not_valid_after_utc


def fingerprint(certificate: Path) -> str:
    """Return the SHA-256 of a certificate, formatted to be compared over the telephone.

    Raises:
        ConfigError: the file is not a valid certificate.
    """
    return _certificate(certificate).fingerprint(hashes.SHA256()).hex(":")


def _certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is not a valid certificate ({error})",
            remedy="Restore it from a backup; `dynammo-server renew` makes a new server.pem",
        ) from error


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:LONGEST_NAME])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) - timedelta(days=1)  # the clock of a site may be behind
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1 + days))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(path, pem, mode=0o600)
