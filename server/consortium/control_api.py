"""Ask a SuperLink through Flower's Control API, as an operator: each request shows the operator's token.

The messages are Flower's. The connection is not, since what runs on this machine is not asked for through a proxy.
(flwr 1.41 and 1.42: supercore/protobuf/client.py)
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.proto import control_pb2
from flwr.supercore.protobuf.constants import FRAME_HEADER_SIZE, PROTOBUF_MEDIA_TYPE, PROTOBUF_STREAM_MEDIA_TYPE

from dynammo_core.support.errors import RunError
from server.consortium.settings import ServerSettings
from server.gate.operator_token import HEADER, read_token

SECONDS = 120.0
LONGEST_REASON = 600


def ask(settings: ServerSettings, call: str, **fields: Any) -> Any:
    """Ask a question such as `list-runs`, whose request has these fields, and return Flower's answer.

    Raises:
        ConfigError: the operator's token cannot be read.
        RunError: the SuperLink does not answer, or refuses.
    """
    with _answer(settings, call, fields, PROTOBUF_MEDIA_TYPE) as answer:
        return _message(call, "Response").FromString(answer.read())


def ask_stream(settings: ServerSettings, call: str, **fields: Any) -> Any | None:
    """Ask a question that is answered piece by piece, and return the first piece; None if there is none.

    Raises:
        ConfigError: the operator's token cannot be read.
        RunError: the SuperLink does not answer, or refuses.
    """
    with _answer(settings, call, fields, PROTOBUF_STREAM_MEDIA_TYPE) as answer:
        received = b""
        for part in answer.iter_bytes():
            received += part
            end = FRAME_HEADER_SIZE + int.from_bytes(received[:FRAME_HEADER_SIZE], "big")
            if len(received) >= end:
                return _message(call, "Response").FromString(received[FRAME_HEADER_SIZE:end])
    return None


def _message(call: str, kind: str) -> Any:
    """Find the type of a question's request or response: `list-runs` is asked by a ListRunsRequest."""
    return getattr(control_pb2, f"{call.title().replace('-', '')}{kind}")


@contextmanager
def _answer(settings: ServerSettings, call: str, fields: dict[str, Any], accepted: str) -> Iterator[httpx.Response]:
    request = _message(call, "Request")(**fields).SerializeToString()
    headers = {HEADER: read_token(settings.operator_token), "content-type": PROTOBUF_MEDIA_TYPE, "accept": accepted}
    url = f"https://{settings.address}/v1/control/{call}"
    try:
        trusted = ssl.create_default_context(cafile=settings.ca_certificate)
        with (
            httpx.Client(verify=trusted, trust_env=False, timeout=SECONDS) as client,
            client.stream("POST", url, content=request, headers=headers) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise RunError(f"the SuperLink at {settings.address} refuses `{call}`: {_reason(answer)}")
            yield answer
    except (httpx.HTTPError, OSError) as error:
        raise RunError(
            f"the SuperLink at {settings.address} does not answer ({error})",
            remedy="Check that it is running, or start it with `dynammo-server start`",
        ) from error


def _reason(answer: httpx.Response) -> str:
    """Return why a request was refused: what Flower says to people, or else the beginning of the text."""
    try:
        said = json.loads(answer.text)
        text = " ".join(str(said[key]) for key in ("detail", "extra") if key in said)
    except (ValueError, TypeError):
        text = answer.text
    return f"{' '.join(text.split())[:LONGEST_REASON]} (HTTP {answer.status_code})"
