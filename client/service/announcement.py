"""What a hospital tells of its images before any experiment: which classes, and roughly how many images of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client.consent.policy import load_policy
from client.consent.settings import load_site
from client.state.withdrawal import WithdrawalLedger
from dynammo_core.configuration.settings import DataSettings
from dynammo_core.data.loading import open_own
from dynammo_core.support.errors import ConfigError, PolicyError
from dynammo_core.wire.announcement import Announcement, band


def announcement(node_config: Mapping[str, object]) -> Announcement:
    """The classes that this hospital's labels name, with a band of the number of their images.

    A class of which it holds too few images is not named; too few training (test) images are not counted.

    Raises:
        ConfigError: this is a simulated site, or its `site.yaml` or `policy.yaml` is wrong.
        PolicyError: its policy announces nothing.
        DataError: its images cannot be indexed.
    """
    file = node_config.get("site-config")
    if file is None:
        raise ConfigError("a simulated site has nothing to announce", remedy="Start it by `dynammo-site start`")
    settings = load_site(Path(str(file)))
    own, policy = settings.data, load_policy(settings.policy)
    if not policy.announce:
        raise PolicyError("the policy of this site announces no classes", remedy="Set `announce: true` in its policy")
    dataset = open_own(DataSettings(dataset=own.dataset, root=own.root), seed=0)
    counts = np.zeros(len(dataset.class_names), dtype=np.int64)
    ledger = WithdrawalLedger(settings.memory.folder)
    for split in (dataset.train, dataset.test):
        held = np.bincount(ledger.allowed_split(split).labels, minlength=len(counts))
        counts += np.where(held < policy.fewest_images, 0, held)
    named = zip(dataset.class_names, counts.tolist(), strict=True)
    return Announcement({name: band(count) for name, count in named if count})
