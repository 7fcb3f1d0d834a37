"""Tell from a message's headers alone whether a registered site signed it, before its body is read.

Flower repeats this check once it has the body, and also checks that the message belongs to the site
(flwr 1.41: superlink/routers/fleet/node_auth.py).
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from datetime import datetime
from typing import Any

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from starlette.concurrency import run_in_threadpool


async def registered_node(scope: Any) -> int | None:
    """Return Flower's id of the registered site that signed a request, or None if no registered site did."""
    return await run_in_threadpool(_signer, dict(scope["headers"]), scope["app"].state.linkstate_factory)


async def registered_name(scope: Any) -> str | None:
    """Return the name under which the site that signed a request is registered, or None if no registered site did."""
    node = await registered_node(scope)
    if node is None:
        return None
    state = scope["app"].state.linkstate_factory.state()
    found = await run_in_threadpool(state.get_node_info, node_ids=[node])
    return next((str(one.name) for one in found), None)


def _signer(headers: dict[bytes, bytes], registered: Any) -> int | None:
    try:
        public_key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.encode()], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.encode()], validate=True)
        timestamp = headers[TIMESTAMP_HEADER.encode()]
        age = (now() - datetime.fromisoformat(timestamp.decode("ascii"))).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return None
        node: int | None = registered.state().get_node_id_by_public_key(public_key)
        if node is None or not verify_signature(bytes_to_public_key(public_key), timestamp, signature):
            return None
    except (KeyError, ValueError, TypeError, binascii.Error):
        return None
    return node
