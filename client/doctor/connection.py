"""Check whether the SuperLink would admit this site, by one request that changes nothing there.

The request is Fleet's ActivateNode, signed by the site's key, with a heartbeat interval that is not allowed. The
SuperLink checks the signature first, then whether the key is registered, then the interval: a site refused for its
interval would have been admitted, and a SuperNode that uses the same key is not disturbed. The SuperLink logs this.
(flwr 1.41: superlink/routers/fleet/node_auth.py and superlink/servicer/fleet/fleet_handlers.py)
"""

from __future__ import annotations

import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.request import getproxies

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client.consent.settings import SiteSettings
from client.doctor.findings import Finding
from client.state.node_key import fingerprint, load_private_key
from dynammo_core.support.errors import ConfigError

TIMEOUT_SECONDS = 10.0
LOOPBACK = ("127.0.0.1", "localhost")
PATH = "/v1/fleet/activate-node"
NOT_ALLOWED_INTERVAL, NOT_ACTIVATED = 2003, 2004
"""Flower's codes: refused only for its interval; refused because the key is not registered (ApiErrorCode)."""
AHEAD_SECONDS, BEHIND_SECONDS, DRIFT_SECONDS = 5.0, 300.0, 60.0
"""Flower refuses signatures from more than 5 s in its future or 300 s in its past (SYSTEM_TIME_TOLERANCE and
TIMESTAMP_TOLERANCE); a clock that is 60 s slow is wrong enough for a warning."""
EXPIRES_SOON_DAYS = 30
NAME_HEADER = "dynammo-site"
"""In which the consortium's server says under which name it registered the key that signed (server/gate/gate.py)."""
# X509_V_ERR_* of OpenSSL's x509_vfy.h, as SSLCertVerificationError.verify_code gives them.
NOT_YET_VALID, EXPIRED, WRONG_AUTHORITY, WRONG_NAME = {9}, {10}, {2, 7, 18, 19, 20, 21}, {62, 64}


def connection_findings(settings: SiteSettings, signed_at: datetime | None = None) -> list[Finding]:
    """Check the connection to the SuperLink step by step, and stop at the first error.

    Args:
        settings: the site.
        signed_at: the time that the signature claims; now by default.

    Raises:
        ConfigError: the private key or the certificate authority's file cannot be read.
    """
    authority, about_authority = _authority(settings.ca_certificate)
    key = load_private_key(settings.private_key)
    if about_authority.state == "wrong":
        return [about_authority]
    sent = time.time()
    try:
        request = _signed_request(settings, key, signed_at)
        with httpx.Client(verify=authority, timeout=TIMEOUT_SECONDS, trust_env=not _is_here(settings)) as client:
            response = client.send(request, stream=True)  # streamed, or the connection is gone with its certificate
            certificate = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
            response.read()
    except (httpx.TransportError, httpx.InvalidURL) as error:
        return [about_authority, _unreachable(settings, error)]
    clock = clock_finding(response.headers.get("date"), (sent + time.time()) / 2)
    answered = _authentication(settings, key, response, clock)
    return [about_authority, _encrypted(settings, certificate), *([clock] if clock else []), *answered]


def refusal(settings: SiteSettings) -> Finding | None:
    """Return why the SuperLink would refuse this site, or None if it would admit it.

    Raises:
        ConfigError: as `connection_findings`.
    """
    findings = connection_findings(settings)
    if findings[-1].state != "wrong":  # let in: whatever else is wrong did not matter
        return None
    return next(finding for finding in findings if finding.state == "wrong")


def clock_finding(date: str | None, now: float) -> Finding | None:
    """Compare the server's HTTP Date header, cut to whole seconds, with `now`, our time when it was written."""
    try:
        server = parsedate_to_datetime(date or "").timestamp() + 0.5
    except ValueError:
        return None
    skew = now - server
    what = f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the SuperLink's"
    remedy = "Synchronise it by NTP (`timedatectl set-ntp true`); if this clock is right, tell the operator"
    # half a second is lost in the header, and as much again may be on the way
    if skew > AHEAD_SECONDS + 1 or skew < -BEHIND_SECONDS:
        return Finding("clock", "wrong", f"{what}: its signatures are refused", remedy)
    if skew > AHEAD_SECONDS / 2 or skew < -DRIFT_SECONDS:
        return Finding("clock", "warning", what, remedy)
    return Finding("clock", "ok", f"within {max(abs(skew), 1):.0f} s of the SuperLink's")


def _signed_request(
    settings: SiteSettings, key: ec.EllipticCurvePrivateKey, signed_at: datetime | None
) -> httpx.Request:
    """Return the request; its content is an ActivateNodeRequest with `public_key` (field 1) alone."""
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    timestamp = (signed_at or datetime.now(UTC)).isoformat()
    headers = {
        "content-type": "application/protobuf",
        "accept": "application/protobuf",
        "flwr-public-key": b64encode(public).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": b64encode(key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
    }
    content = b"\x0a" + _varint(len(public)) + public
    return httpx.Request("POST", f"https://{settings.superlink}{PATH}", headers=headers, content=content)


def _varint(number: int) -> bytes:
    """Encode a length as protocol buffers do: seven bits per byte, the lowest first."""
    more, last = divmod(number, 128)
    return bytes([last | 0x80]) + _varint(more) if more else bytes([last])


def _authority(path: Path) -> tuple[ssl.SSLContext, Finding]:
    """Return the certificate authority as the only one to be trusted, and the finding about its file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        content = path.read_bytes()
        certificates = x509.load_pem_x509_certificates(content)
        context.load_verify_locations(cadata=content.decode("ascii"))
    except OSError as error:  # ssl.SSLError too is one
        raise ConfigError(
            f"the certificate authority's file {path} cannot be read: {error.strerror or error}",
            remedy="Ask the operator for the consortium's ca.pem and put it there, or correct ca_certificate",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not a certificate in PEM format", remedy="Ask the operator for the consortium's ca.pem"
        ) from error
    expiry = min(certificate.not_valid_after_utc for certificate in certificates)
    digest = certificates[0].fingerprint(hashes.SHA256()).hex(":").upper()
    what = f"{path} (SHA-256 {digest}) is valid until {expiry:%Y-%m-%d}"
    remedy = "Ask the operator for the consortium's new ca.pem"
    return context, _by_expiry("certificate authority", what, remedy, expiry)


def _encrypted(settings: SiteSettings, certificate: dict[str, str]) -> Finding:
    expiry = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    what = f"{settings.superlink} has a certificate of this authority for this name, valid until {expiry:%Y-%m-%d}"
    return _by_expiry("TLS", what, "Ask the operator to renew the server's certificate", expiry)


def _by_expiry(check: str, what: str, remedy: str, expiry: datetime) -> Finding:
    days = (expiry - datetime.now(UTC)).total_seconds() / 86_400
    if days < 0:
        return Finding(check, "wrong", f"{what}, which has passed", remedy)
    if days < EXPIRES_SOON_DAYS:
        return Finding(check, "warning", f"{what}, in {days:.0f} days", remedy)
    return Finding(check, "ok", what)


def _unreachable(settings: SiteSettings, error: httpx.TransportError | httpx.InvalidURL) -> Finding:
    """Return why there was no answer: the cause beneath the HTTP library's error."""
    place = settings.superlink
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_refused(settings, cause)
        if isinstance(cause, ssl.SSLError):
            return Finding(
                "TLS",
                "wrong",
                f"{place} answers, but not with TLS ({cause.reason or cause})",
                "Correct the port in superlink, or ask the operator whether the SuperLink runs with certificates",
            )
        if isinstance(cause, ConnectionRefusedError):
            return Finding(
                "SuperLink",
                "wrong",
                f"nothing listens at {place}",
                "Correct superlink, or ask the operator whether the SuperLink runs",
            )
    proxy = " A proxy is set in this environment: HTTPS_PROXY, ALL_PROXY" if _has_proxy() else ""
    return Finding(
        "SuperLink",
        "wrong",
        f"cannot reach {place} ({str(error) or type(error).__name__})",
        f"Check the host in superlink, and that the firewall allows connections from here to that port.{proxy}",
    )


def _certificate_refused(settings: SiteSettings, error: ssl.SSLCertVerificationError) -> Finding:
    place, authority, code = settings.superlink, settings.ca_certificate, error.verify_code
    if code in EXPIRED:
        what, remedy = "has expired", "Ask the operator to renew it; if it is valid, this machine's clock is wrong"
    elif code in NOT_YET_VALID:
        what, remedy = "is not valid yet", "Set this machine's clock; if it is right, tell the operator"
    elif code in WRONG_AUTHORITY:
        what = f"was not issued by the authority in {authority}"
        remedy = (
            "Compare that file's SHA-256 with the operator's by telephone: either it is an old or a foreign one, or "
        )
        remedy += "somebody else answers there"
    elif code in WRONG_NAME:
        what = f"is for another name: {error.verify_message}"
        remedy = "Use the host name that the operator gave you in superlink, or ask for a certificate with this name"
    else:
        what, remedy = f"is refused: {error.verify_message}", "Tell the operator"
    return Finding("TLS", "wrong", f"the certificate of {place} {what}", remedy)


def _authentication(
    settings: SiteSettings, key: ec.EllipticCurvePrivateKey, response: httpx.Response, clock: Finding | None
) -> list[Finding]:
    """Check from the answer to the request that the SuperLink answers and knows the key."""
    name = f"the key {fingerprint(key)} of {settings.private_key}"
    answers = Finding("SuperLink", "ok", f"answers at {settings.superlink}")
    code = None
    with suppress(ValueError, AttributeError):
        code = response.json().get("code")
    if code == NOT_ALLOWED_INTERVAL:
        return [answers, _registered(settings, name, response.headers.get(NAME_HEADER, settings.site))]
    if code == NOT_ACTIVATED:
        return [
            answers,
            Finding(
                "authentication",
                "wrong",
                f"{name} is not registered at {settings.superlink}",
                f"Send {settings.private_key}.pub to the operator, to be registered as the site {settings.site}",
            ),
        ]
    if response.status_code == httpx.codes.UNAUTHORIZED:
        remedy = "Set the clock" if clock and clock.state != "ok" else "Compare the versions of Flower on both sides"
        what = f"the SuperLink at {settings.superlink} refuses the signature of {name}"
        return [answers, Finding("authentication", "wrong", what, remedy)]
    return [
        Finding(
            "SuperLink",
            "wrong",
            f"{settings.superlink} answers (HTTP {response.status_code}), but is not a Flower SuperLink",
            "Correct superlink, or ask the operator for the version that runs there",
        )
    ]


def _registered(settings: SiteSettings, key: str, name: str) -> Finding:
    """Compare the name under which the server registered the key with the one in site.yaml."""
    if name == settings.site:
        return Finding("authentication", "ok", f"{key} is registered")
    return Finding(
        "authentication",
        "wrong",
        f"{key} is registered as the site {name!r}, and site.yaml says {settings.site!r}: its steps would fail",
        f"If the operator's name is meant, write it into site.yaml; else the operator removes {name!r}, and registers "
        f"a new key of this site as {settings.site!r}",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_here(settings: SiteSettings) -> bool:
    """Return whether the SuperLink is on this machine, so that no proxy is used."""
    return settings.superlink.rpartition(":")[0] in LOOPBACK


def _has_proxy() -> bool:
    return bool({"https", "all"} & set(getproxies()))
