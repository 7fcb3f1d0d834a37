"""Compare this site's labels with the classes of an experiment: a misspelt label keeps its images out, silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from client.consent.approvals import Approvals
from client.consent.settings import SiteSettings
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.datasets import LABELS
from dynammo_core.support.errors import DynammoError
from dynammo_core.wire.announcement import misspelt


def misspelt_labels(settings: SiteSettings, config: Config[Any]) -> list[str]:
    """Return a sentence for each of the site's labels that is nearly, but not exactly, a class of an experiment.

    Raises:
        DataError: the site's labels cannot be read.
    """
    own = settings.data
    if own.dataset not in LABELS:  # a data set whose classes are fixed
        return []
    labels = LABELS[own.dataset](DataSettings(dataset=own.dataset, root=own.root))
    return [
        f"this site's label {label!r} is not a class of {config.name} (did you mean {name!r}?); its images take no part"
        for label, name in misspelt(labels, config.data.classes or ()).items()
    ]


def misspelt_in_approved(settings: SiteSettings) -> Iterator[str]:
    """Yield the sentences of `misspelt_labels` for all approved experiments; what cannot be read is left out."""
    with suppress(DynammoError):
        for proposal in Approvals(settings.approvals).approved():
            with suppress(DynammoError):  # another version's experiment does not keep the others from being looked at
                yield from misspelt_labels(settings, proposal.config)
