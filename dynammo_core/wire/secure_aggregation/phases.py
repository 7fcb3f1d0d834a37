"""What travels in the four exchanges of a step under secure aggregation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from dynammo_core.support.errors import ProtocolError
from dynammo_core.wire.protocol import Phase, Report
from dynammo_core.wire.protocol_checks import same_names
from dynammo_core.wire.secure_aggregation.offers import OFFER_BYTES
from dynammo_core.wire.secure_aggregation.shamir import SHARE_BYTES
from dynammo_core.wire.secure_aggregation.sharing import SEALED_BYTES

ATTEMPT, SITES, KEYS, SHARES, SURVIVORS = (
    f"secure.{name}" for name in ("attempt", "sites", "keys", "shares", "survivors")
)
ATTEMPT_BYTES = 16
PHASE_DOWN: Mapping[Phase, frozenset[str]] = MappingProxyType(
    {
        Phase.KEYS: frozenset({ATTEMPT}),
        Phase.SHARES: frozenset({ATTEMPT, SITES, KEYS}),
        Phase.MASKED: frozenset({ATTEMPT, SITES, KEYS}),
        Phase.OPEN: frozenset({ATTEMPT, SITES, KEYS, SHARES, SURVIVORS}),
    }
)
"""What the server sends in an exchange; in MASKED, also the stage's tensors. `attempt` uint8 [16]: random bytes that
tell attempts at a step apart; `sites` int64 [n], ascending, and `keys` uint8 [n, 338]: who takes part, and their
public keys, signed (see `offers`); `shares` uint8 [n, 82]: what each of them dealt to the receiver; `survivors` int64:
those in the sum."""

PHASE_UP: Mapping[Phase, str] = MappingProxyType(
    {
        Phase.KEYS: "secure.keys",
        Phase.SHARES: "secure.shares",
        Phase.MASKED: "secure.masked",
        Phase.OPEN: "secure.opened",
    }
)
"""The one tensor a site sends. `keys` uint8 [338]; `shares` uint8 [n, 82]: for each of the sites, encrypted for it;
`masked` int64 [N]: the masked vector; `opened` uint8 [n, 33]: for each survivor the share of its own mask, for each
other site the share of its masking key."""


def phase_shape(phase: Phase, sites: int, length: int) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return the type and shape of what a site sends in an exchange among n sites with vectors of N integers."""
    return {
        Phase.KEYS: (torch.uint8, (OFFER_BYTES,)),
        Phase.SHARES: (torch.uint8, (sites, SEALED_BYTES)),
        Phase.MASKED: (torch.int64, (length,)),
        Phase.OPEN: (torch.uint8, (sites, SHARE_BYTES)),
    }[phase]


def check_phase(report: Report, phase: Phase, sites: int, length: int) -> None:
    """Refuse an answer in an exchange of secure aggregation that is not exactly as declared; at both ends.

    Args:
        report: the answer.
        phase: the exchange.
        sites: number n of sites whose keys were sent.
        length: number N of a vector's integers.

    Raises:
        ProtocolError: the answer abstains, or a tensor or number is undeclared, missing, or of another shape or type.
    """
    if report.abstained:
        raise ProtocolError("a site abstained openly from a secure step; it must send a vector of zeros instead")
    same_names("tensor", set(report.weights), {PHASE_UP[phase]})
    same_names("number", set(report.numbers), {"seconds"} if phase is Phase.MASKED else set())
    check_tensor(PHASE_UP[phase], report.weights[PHASE_UP[phase]], *phase_shape(phase, sites, length))
    if any(isinstance(value, list) or not math.isfinite(value) for value in report.numbers.values()):
        raise ProtocolError("'seconds' is not one finite number")


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another type or shape than declared.

    Raises:
        ProtocolError: the type or the shape differs.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ProtocolError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}", accepted=f"{dtype} {shape}")
