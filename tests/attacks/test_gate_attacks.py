"""Attacks on the gate before a real SuperLink: memory, patience, connections, and calls without the token."""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from superlinks import (
    MEGABYTE,
    OPERATOR,
    PROTOBUF,
    STRANGER,
    THIS_MACHINE,
    Headers,
    connected,
    raw,
    raw_socket,
    running_superlink,
    shown_token,
    status_of,
)

from client.state.node_key import load_private_key, new_key_pair
from server.consortium.control import Control
from server.consortium.settings import ServerSettings
from server.consortium.sites import SiteRegister
from server.gate.bodies import GRACE_SECONDS
from server.gate.connections import HEADER_SECONDS, MOST_FROM_ONE
from server.gate.operator_token import HEADER

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8, and /proc")

SENT_MEGABYTES, MOST_GROWTH = 399, 50 * MEGABYTE
OPERATORS_PATHS = [path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/")]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerSettings]:
    """A SuperLink of this file's own: its memory is looked at."""
    with running_superlink(tmp_path_factory.mktemp("attacked") / "consortium") as settings:
        yield settings


@pytest.fixture(scope="module")
def site_key(superlink: ServerSettings, tmp_path_factory: pytest.TempPathFactory) -> ec.EllipticCurvePrivateKey:
    """The key of a registered site."""
    folder = tmp_path_factory.mktemp("site")
    private, public = new_key_pair("liar")
    (folder / "site.key").write_bytes(private)
    (folder / "site.key.pub").write_bytes(public)
    SiteRegister(superlink, Control(superlink)).add("liar", folder / "site.key.pub")
    return load_private_key(folder / "site.key")


def signed(key: ec.EllipticCurvePrivateKey, *, at: datetime | None = None) -> Headers:
    """Headers as a SuperNode sends them."""
    timestamp = (at or datetime.now(UTC)).isoformat()
    return PROTOBUF | {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-signature": b64encode(sign_message(key, timestamp.encode("ascii"))).decode(),
        "flwr-timestamp": timestamp,
    }


def memory(process: int, kind: str) -> int:
    """Bytes of a process: `VmRSS` now, `VmHWM` the most since it was reset."""
    return 1024 * int(Path(f"/proc/{process}/status").read_text().split(f"{kind}:")[1].split()[0])


@cache
def untouched(process: int) -> int:
    """Bytes of a SuperLink to which nothing was done; what it keeps of an attack hides no later one."""
    return memory(process, "VmRSS")


def growth(settings: ServerSettings, act: Callable[[], object]) -> int:
    """By how many bytes the SuperLink at most outgrew what it began with, while something was done to it."""
    process = int((settings.folder.parent / "superlink.pid").read_text())
    before = untouched(process)
    Path(f"/proc/{process}/clear_refs").write_text("5")  # the most starts anew
    act()
    time.sleep(0.2)
    return memory(process, "VmHWM") - before


def pour(settings: ServerSettings, path: str, headers: Headers, source: str, *, chunked: bool) -> None:
    """Send 399 MB, a megabyte at a time, for as long as they are taken."""
    connection, block = connected(settings, source), b"x" * MEGABYTE
    length = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(SENT_MEGABYTES * MEGABYTE)}
    with suppress(OSError):
        connection.putrequest("POST", path)
        for name, value in (PROTOBUF | headers | length).items():
            connection.putheader(name, value)
        connection.endheaders()
        for _ in range(SENT_MEGABYTES):
            connection.send(b"%x\r\n%b\r\n" % (MEGABYTE, block) if chunked else block)
    connection.close()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/v1/fleet/activate-node", STRANGER),
        ("/v1/fleet/push-object", STRANGER),
        ("/v1/fleet/no-such-call", STRANGER),
        ("/v1/control/start-run", THIS_MACHINE),
        ("/v1/runtime/push-object", THIS_MACHINE),
        ("/health", STRANGER),
    ],
)
def test_399_megabytes_from_a_stranger_take_no_memory(
    superlink: ServerSettings, path: str, source: str, chunked: bool
) -> None:
    assert growth(superlink, lambda: pour(superlink, path, {}, source, chunked=chunked)) < MOST_GROWTH


@pytest.mark.parametrize("chunked", [False, True])
def test_399_megabytes_from_a_registered_site_take_no_more_than_its_limit(
    superlink: ServerSettings, site_key: ec.EllipticCurvePrivateKey, chunked: bool
) -> None:
    def act() -> None:
        pour(superlink, "/v1/fleet/push-object", signed(site_key), STRANGER, chunked=chunked)

    assert growth(superlink, act) < superlink.largest_message_megabytes * MEGABYTE + MOST_GROWTH


def test_headers_without_end_take_no_memory(superlink: ServerSettings) -> None:
    def act() -> None:
        with suppress(OSError), raw_socket(superlink) as opened:
            opened.sendall(b"POST /v1/fleet/activate-node HTTP/1.1\r\nhost: localhost\r\n")
            for _ in range(200):
                opened.sendall((b"x: " + b"y" * 1000 + b"\r\n") * 1000)

    assert growth(superlink, act) < MOST_GROWTH


def test_a_length_is_refused_before_a_byte_of_the_body(
    superlink: ServerSettings, site_key: ec.EllipticCurvePrivateKey
) -> None:
    def declared(path: str, length: int, headers: Headers) -> int:
        lines = {"host": "localhost", "content-length": str(length), **PROTOBUF, **headers}
        text = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return int(raw(superlink, text.encode() + b"\r\n", STRANGER).split(b" ")[1])

    assert declared("/v1/fleet/activate-node", 65 << 10, {}) == 413
    assert declared("/v1/fleet/push-object", 6 * MEGABYTE, {}) == 401
    assert declared("/v1/fleet/push-object", 33 * MEGABYTE, signed(site_key)) == 413


def test_large_messages_are_taken_from_registered_sites_alone(
    superlink: ServerSettings, site_key: ec.EllipticCurvePrivateKey
) -> None:
    path, part = "/v1/fleet/push-object", b"x" * (6 * MEGABYTE)
    text = {"content-type": "text/plain"}  # behind the gate Flower refuses it by another code
    assert status_of(superlink, path, signed(site_key) | text, part) == 415
    stranger, _ = generate_key_pairs()
    assert status_of(superlink, path, signed(stranger) | text, b"x") == 401
    forged = signed(site_key) | text | {"flwr-signature": signed(stranger)["flwr-signature"]}
    assert status_of(superlink, path, forged, b"x") == 401
    assert status_of(superlink, path, signed(site_key, at=datetime.now(UTC) - timedelta(hours=1)) | text, b"x") == 401
    assert status_of(superlink, path, signed(site_key) | text | {"flwr-timestamp": "now"}, b"x") == 401


def seconds_held(settings: ServerSettings, first: bytes, drip: bytes, source: str) -> float:
    """How long a connection is kept that sends `first`, and then `drip` every second."""
    began = time.monotonic()
    with suppress(OSError), raw_socket(settings, source) as opened:
        opened.sendall(first)
        opened.settimeout(1.0)
        while time.monotonic() - began < 2 * GRACE_SECONDS:
            try:
                if not opened.recv(MEGABYTE):
                    break
            except TimeoutError:
                opened.sendall(drip)
    return time.monotonic() - began


def test_nobody_is_waited_for_without_end(superlink: ServerSettings) -> None:
    line = b"POST /v1/fleet/activate-node HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/protobuf\r\n"
    health = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    slow = [
        (b"", b""),  # says nothing
        (line, b"x"),  # headers without end
        (health, b"G"),  # the same behind an honest request
        (line + b"content-length: 60000\r\n\r\n", b"x"),  # a body, a byte a second
        (line + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ]
    with ThreadPoolExecutor(len(slow)) as pool:
        held = pool.map(lambda pair: seconds_held(superlink, *pair, STRANGER), slow)
    limit = max(GRACE_SECONDS, HEADER_SECONDS) + 5
    assert all(seconds < limit for seconds in held)


def test_one_address_cannot_take_all_connections(superlink: ServerSettings) -> None:
    greedy = "127.0.0.3"
    with ExitStack() as stack:
        opened = []
        for _ in range(MOST_FROM_ONE + 50):
            with suppress(OSError):
                opened.append(stack.enter_context(raw_socket(superlink, greedy)))
        assert status_of(superlink, "/v1/fleet/pull-messages", source="127.0.0.4") == 401
        alive = 0
        for one in opened:
            one.settimeout(0.002)
            try:
                alive += bool(one.recv(1))
            except TimeoutError:
                alive += 1
            except OSError:
                pass
    assert 0 < alive <= MOST_FROM_ONE
    time.sleep(0.5)
    assert status_of(superlink, "/v1/fleet/pull-messages", source=greedy) == 401  # they are counted out again


@pytest.mark.parametrize("source", [THIS_MACHINE, OPERATOR])
def test_an_account_of_the_machine_that_cannot_read_the_token_is_no_operator(
    superlink: ServerSettings, source: str
) -> None:
    token = shown_token(superlink)[HEADER]
    wrong: list[Headers] = [{}, {HEADER: ""}, {HEADER: token[:-1]}, {HEADER: token.swapcase()}, {"cookie": token}]
    assert len(OPERATORS_PATHS) > 30
    for number, path in enumerate(OPERATORS_PATHS):
        assert status_of(superlink, path, wrong[number % len(wrong)], source=source) == 403, path
    assert status_of(superlink, "/v1/control/list-runs", {HEADER: token}, source=source) == 200
    assert status_of(superlink, "/v1/control/list-runs", {HEADER: token}, source=STRANGER) == 403


TARGETS = [
    *("//v1/control/list-runs", "/v1//control/list-runs", "/v1/control/list-runs/", "/V1/control/list-runs"),
    *("/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/v1/fleet/..%2fcontrol/list-runs"),
    *("/v1%2fcontrol/list-runs", "/%76%31/control/list-runs", "/v1/fleet/pull-messages/../../control/list-runs"),
    *(
        "https://localhost/v1/control/list-runs",
        "https://localhost/v1/fleet/pull-messages",
        "/v1/control/list-runs?x=/v1/fleet/",
    ),
    *("/v1/control/list-runs%3f", "/v1/control/list-runs#/v1/fleet/", "/health/../v1/control/list-runs", "/health%00"),
    *("/v1/fleet/pull-messages;/v1/control/list-runs", "/v1/fleet\\..\\control\\list-runs", "*"),
]
TRICKS = [
    "host: localhost/v1/control/list-runs?",
    "host: localhost\r\nx-original-url: /v1/control/list-runs\r\nx-rewrite-url: /v1/control/list-runs",
    "host: localhost\r\nhost: other",
    f"host: localhost\r\nx-forwarded-for: {THIS_MACHINE}\r\nforwarded: for={OPERATOR}",
    "host: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eA==",
    "host: localhost\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity",
    f"host: localhost\r\n{HEADER}:\r\n{HEADER}: x",
    f"host: localhost\r\n {HEADER}: x",
]


def test_no_trick_of_http_reaches_what_operators_do(superlink: ServerSettings) -> None:
    rest = "content-type: application/protobuf\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    requests = [f"POST {target} HTTP/1.1\r\nhost: localhost\r\n{rest}" for target in TARGETS]
    requests += [f"POST /v1/control/list-runs HTTP/1.1\r\n{trick}\r\n{rest}" for trick in TRICKS]
    requests += [f"{verb} /v1/control/list-runs HTTP/1.{minor}\r\nhost: localhost\r\n{rest}" for verb, minor in
                 (("GET", 1), ("HEAD", 1), ("OPTIONS", 1), ("post", 1), ("POST", 0))]  # fmt: skip
    for source in (OPERATOR, STRANGER):
        for request in requests:
            answer = raw(superlink, request.encode(), source)
            assert int(answer.split(b" ")[1]) in (400, 403, 404), (request, answer)


def test_a_request_that_is_hidden_in_another_is_looked_at_as_well(superlink: ServerSettings) -> None:
    hidden = b"POST /v1/control/list-runs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/protobuf\r\n"
    hidden += b"connection: close\r\ncontent-length: 0\r\n\r\n"
    line = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/protobuf\r\n"
    for length in (b"content-length: 0\r\n", b"transfer-encoding: chunked\r\ncontent-length: %d\r\n" % len(hidden)):
        chunk = b"" if b"chunked" not in length else b"0\r\n\r\n"
        answer = raw(superlink, line + length + b"\r\n" + chunk + hidden)
        assert not any(line.startswith(b"HTTP/1.1 2") for line in answer.splitlines()), answer
        assert answer.count(b"HTTP/1.1 403") == answer.count(b"HTTP/1.1") - 1 or b"HTTP/1.1 400" in answer
    two = line + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(hidden) + hidden
    assert raw(superlink, two).startswith(b"HTTP/1.1 400")


def test_the_token_stands_on_no_command_line(superlink: ServerSettings) -> None:
    token = shown_token(superlink)[HEADER].encode()
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(file.read_bytes())
    assert any(b"flower-superexec" in line for line in lines)
    assert not any(token in line for line in lines)
    assert superlink.operator_token.stat().st_mode & 0o777 == 0o600
