"""The keys that a site offers for one attempt, signed by its registered key, so that no server can invent them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from dynammo_core.wire.secure_aggregation.masking import PUBLIC_BYTES, Context

CURVES: tuple[ec.EllipticCurve, ...] = (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
POINT_BYTES, SIGNATURE_BYTES = 133, 139
"""The longest point and signature of these curves: those of P-521, uncompressed (SEC 1) and in DER."""

OFFER_BYTES = PUBLIC_BYTES + 1 + POINT_BYTES + 1 + SIGNATURE_BYTES
_ALGORITHM = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)  # asked again, a site offers the same bytes


@dataclass(frozen=True)
class Signatory:
    """Signs a site's own offers, and verifies those of the others.

    Attributes:
        key: the private key by which this site is registered.
        experiment: SHA-256 of the experiment that people have approved.
        fingerprints: fingerprints of all sites' keys, in the order of the sites, as that experiment names them.
    """

    key: ec.EllipticCurvePrivateKey
    experiment: str
    fingerprints: tuple[str, ...]

    def offer(self, public: bytes, site: int, context: Context) -> bytes:
        """Return public keys with the registered key and its signature, `OFFER_BYTES` long.

        Args:
            public: the public keys of the attempt, `PUBLIC_BYTES` long.
            site: index of this site.
            context: the run, step and attempt that they are for.

        Raises:
            ValueError: this site's key is not the one that the experiment names.
        """
        own, named = self.key.public_key(), self.fingerprints[site]
        if fingerprint(own) != named:
            raise ValueError(f"this site's key is {fingerprint(own)}, but the experiment names {named}")
        point = own.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        signature = self.key.sign(self._words(public, site, context), _ALGORITHM)
        return public + _padded(point, POINT_BYTES) + _padded(signature, SIGNATURE_BYTES)

    def verified(self, offer: bytes, site: int, context: Context) -> bytes:
        """Verify another site's offer and return its public keys.

        Raises:
            ValueError: it is not signed for this very attempt by the key that the experiment names for that site.
        """
        public, rest = offer[:PUBLIC_BYTES], offer[PUBLIC_BYTES:]
        point, signature = _unpadded(rest[: 1 + POINT_BYTES]), _unpadded(rest[1 + POINT_BYTES :])
        curve = next((curve for curve in CURVES if len(point) == 1 + 2 * ((curve.key_size + 7) // 8)), None)
        if curve is None:
            raise ValueError(f"the offer of site {site} contains no valid public key")
        key = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        if fingerprint(key) != self.fingerprints[site]:
            raise ValueError(
                f"the offer of site {site} contains the key {fingerprint(key)}, not {self.fingerprints[site]}"
            )
        try:
            key.verify(signature, self._words(public, site, context), _ALGORITHM)
        except InvalidSignature as error:
            raise ValueError(f"the keys of site {site} are not signed by its key for this attempt") from error
        return public

    def _words(self, public: bytes, site: int, context: Context) -> bytes:
        place = [context.run, context.step, context.attempt.hex(), site]
        return json.dumps(["dynammo offered keys", self.experiment, *place, public.hex()]).encode()


def unsigned(public: bytes) -> bytes:
    """Return the offer of a simulated site, which has no registered key: its public keys, repeated to full length."""
    return (public * (OFFER_BYTES // PUBLIC_BYTES + 1))[:OFFER_BYTES]


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return `SHA256:...` of a public key as `ssh-keygen -l` prints it, for people to compare over the telephone."""
    digest = serialization.ssh_key_fingerprint(key, hashes.SHA256())
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _padded(content: bytes, size: int) -> bytes:
    return bytes([len(content)]) + content.ljust(size, b"\0")


def _unpadded(field: bytes) -> bytes:
    content = field[1 : 1 + field[0]]
    if _padded(content, len(field) - 1) != field:
        raise ValueError("an offer is malformed: its padding is not zero")
    return content
