"""Heads that a site solves for itself, from the common sums and its own, and tests beside the common one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from dynammo_core.methods.base import Method
from dynammo_core.methods.closed_form import HEAD, SHARPNESS, ridge_head, shares
from dynammo_core.methods.closed_form_sums import SUMS, check_weights
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.ridge.head import RidgeHead
from dynammo_core.models.ridge.personal import OwnImages, best_beta, mixed, own_sums
from dynammo_core.models.ridge.solution import Regulariser
from dynammo_core.plan import ALONE, PERSONAL, Evaluate, LearnsFrom, Sums

logger = logging.getLogger("dynammo.personal")


def evaluation(method: Method[Any], learns_from: LearnsFrom) -> Evaluate:
    """Make the stage that ends a task; with `method.personal` sites are sent the common sums, for heads of their own.

    Args:
        method: whose stage it is.
        learns_from: chooses the images that a site's own sums consist of.
    """
    if not method.params.personal:
        return Evaluate(down=method.deployed)
    return Evaluate(
        down=(*method.deployed, f"{HEAD}.sample_weight", *SUMS),
        check_received=partial(check_weights, method.privacy),
        tables=(PERSONAL, ALONE),
        learns_from=learns_from,
        own_heads=partial(own_heads, method),
    )


def own_heads(method: Method[Any], model: IncrementalModel, images: OwnImages) -> Mapping[str, Sums]:
    """Solve the head that serves a site best, from the common sums and its own, and the one of its own sums alone.

    A site without training images has no head of its own: the common one answers for it.

    Args:
        method: of the run.
        model: holds the common classifier and the sums that it was solved from.
        images: the site's training images.
    """
    common = ridge_head(model)
    if not len(images.labels):
        return {PERSONAL: {}}
    own = own_sums(images, common.rows)

    def solve(head: RidgeHead, regulariser: Regulariser) -> float:
        return head.solve(regulariser, shares(method.params.prior, head, method.stream))

    alone = mixed(common, own, math.inf)
    apart = solve(alone, method.params.regulariser)
    together = solve(mixed(common, own, 0.0), method.params.regulariser)
    beta = best_beta(
        common, own, images, lambda head, beta: solve(head, apart if math.isinf(beta) else together), SHARPNESS
    )
    logger.info("the site's own head: common sums + %g own", beta)
    if not beta:
        return {PERSONAL: {}, ALONE: _answers(alone)}
    personal = mixed(common, own, beta)
    solve(personal, apart if math.isinf(beta) else together)
    return {PERSONAL: _answers(personal), ALONE: _answers(alone)}


def _answers(head: RidgeHead) -> Sums:
    return {f"{HEAD}.weight": head.weight, f"{HEAD}.bias": head.bias}
