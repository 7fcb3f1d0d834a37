"""What an auditor asks of a method: may it be private, can it forget, what does it not go with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.settings import BackboneSettings, MethodSettings

P = TypeVar("P", bound=MethodSettings)


def never_private(params: MethodSettings, mechanism: str) -> str:
    """Explain why noise protects nobody where nothing bounds what one image changes."""
    return "there is no bound on how much one image can change what a site sends"


def fits_everything(params: MethodSettings, federation: FederationSettings, backbone: BackboneSettings) -> str:
    """Find no misfit."""
    return ""


@dataclass(frozen=True)
class Governance(Generic[P]):
    """What is asked of a method before it may run among hospitals.

    Attributes:
        obstacle_to_privacy: explains why noise by a mechanism (`example` or `client`) cannot protect anybody, and gives
            the remedy; empty if it can. It can if one image changes a training set by itself alone, a batch's loss is
            the mean of its samples' own, and what is sent are gradients, or sums that a stage `computes_privately`.
        misfit: explains why the parameters do not go with those sections of the configuration, and gives the remedy;
            empty if they do.
        forgets: whether withdrawn records can be taken out of the model: a stage keeps sums and says how to `correct`
            them.
    """

    obstacle_to_privacy: Callable[[P, str], str] = never_private
    misfit: Callable[[P, FederationSettings, BackboneSettings], str] = fits_everything
    forgets: bool = False
