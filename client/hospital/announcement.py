"""Announce, before any experiment, a hospital's classes and roughly how many images it has of each."""

from __future__ import annotations

import numpy as np

from client.consent.policy import Policy
from client.consent.settings import SiteSettings
from client.state.known_images import hash_cache
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.index.contents import hashes_kept_in
from dynammo_core.data.index.opening import open_own
from dynammo_core.support.errors import PolicyError
from dynammo_core.wire.announcement import Announcement, band


def announcement(settings: SiteSettings, policy: Policy) -> Announcement:
    """Return the classes that this hospital's labels name, with a band of the number of their images.

    A class with too few images, or of too few patients, is left out; too few training or test images are not counted.

    Raises:
        PolicyError: its policy announces nothing.
        DataError: its images cannot be indexed.
    """
    if not policy.announce:
        raise PolicyError("this site's policy does not announce classes", remedy="Set `announce: true` in its policy")
    own = settings.data
    with hashes_kept_in(hash_cache(settings.memory)):
        dataset = open_own(DataSettings(dataset=own.dataset, root=own.root), seed=0)
    counts = np.zeros(len(dataset.class_names), dtype=np.int64)
    ledger = WithdrawalLedger(settings.memory.folder)
    for split in (dataset.train, dataset.test):
        allowed = ledger.allowed_split(split)
        counts += policy.fewest.class_counts(allowed.labels, allowed.patient_ids, len(counts))
    named = zip(dataset.class_names, counts.tolist(), strict=True)
    return Announcement({name: band(count) for name, count in named if count})
