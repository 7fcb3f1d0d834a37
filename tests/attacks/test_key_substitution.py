"""A server that plays all other sites to one of them, or passes off keys of another time, place or holder as theirs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from hospitals import deployed, key_of, make_hospital, with_images
from small_runs import instruction, step_of

from client.hospital.hospital import Hospital, Request
from client.steps.secure_answers import secure_answer
from client.steps.site import Site
from dynammo_core.configuration.config import resolve
from dynammo_core.experiment import Experiment
from dynammo_core.support.errors import ConfigError, ProtocolError
from dynammo_core.wire.protocol import Instruction, Phase
from dynammo_core.wire.secure_aggregation.encoding import Encoding
from dynammo_core.wire.secure_aggregation.masking import PUBLIC_BYTES, Context, SiteKeys, unmasked
from dynammo_core.wire.secure_aggregation.offers import OFFER_BYTES, Signatory, fingerprint, unsigned
from dynammo_core.wire.secure_aggregation.phases import ATTEMPT, KEYS, PHASE_UP, SHARES, SITES, SURVIVORS
from dynammo_core.wire.secure_aggregation.shamir import combine
from dynammo_core.wire.secure_aggregation.sharing import deal, opened

NAMES = ["alpha", "beta", "gamma", "delta", "eta"]
SECURE = {"federation": {"secure_aggregation": True}}
CONFIG = deployed(NAMES, ["0", "1"], "streaming_ridge", SECURE)
EXPERIMENT = Experiment(CONFIG)
STEP = step_of(EXPERIMENT, 0, "sum")
VICTIM, INVENTED = 0, [1, 2, 3, 4]


def tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


@dataclass
class Server:
    """A server that knows the secrets of four sites, since it invented them, and one real hospital."""

    site: Site
    context: Context
    asked: Instruction

    @classmethod
    def before(cls, folder: Path, **changes: Any) -> Server:
        site_yaml = make_hospital(folder / "alpha", "alpha", with_images(folder, "alpha", {"0": 9, "1": 9}))
        asked = instruction(EXPERIMENT, STEP, VICTIM, folder)
        site = replace(Hospital(site_yaml).open(Request(asked, {})), **changes)
        return cls(site, Context(asked.run, STEP.index, os.urandom(16)), asked)

    def ask(self, phase: Phase, **tensors: torch.Tensor) -> torch.Tensor:
        weights = {ATTEMPT: tensor(self.context.attempt)} | {
            {"sites": SITES, "keys": KEYS, "shares": SHARES, "survivors": SURVIVORS}[name]: value
            for name, value in tensors.items()
        }
        if phase is Phase.MASKED:  # the exchange for which a site computes
            weights |= self.asked.weights
        report = secure_answer(phase, replace(self.asked, weights=weights), self.site)
        return report.weights[PHASE_UP[phase]]

    def keys(self, site: int) -> SiteKeys:
        """Of an invented site."""
        return SiteKeys.derive(bytes([site]) * 32, self.context, site)

    def offers(self, own: torch.Tensor, others: dict[int, bytes]) -> torch.Tensor:
        return torch.stack([own, *(tensor(others[site]) for site in INVENTED)])

    def recovered(self) -> np.ndarray[Any, Any]:
        """The attack: all four exchanges with one site, and its masks taken off."""
        own = self.ask(Phase.KEYS)
        keys = {site: self.keys(site) for site in INVENTED}
        public = {VICTIM: own.numpy().tobytes()[:PUBLIC_BYTES]} | {site: one.public for site, one in keys.items()}
        roster = {"sites": torch.tensor([VICTIM, *INVENTED])}
        roster["keys"] = self.offers(own, {site: unsigned(one.public) for site, one in keys.items()})
        shares = self.ask(Phase.SHARES, **roster)
        vector = self.ask(Phase.MASKED, **roster).numpy().view(np.uint64)
        dealt = {site: deal(site, one, public, 4, self.context) for site, one in keys.items()}
        own_share = shares[0]
        given = torch.stack([own_share, *(tensor(dealt[site][VICTIM]) for site in INVENTED)])
        told = self.ask(Phase.OPEN, **roster, shares=given, survivors=torch.tensor([VICTIM, *INVENTED]))
        held = {VICTIM: told[0].numpy().tobytes()}
        for place, site in enumerate(INVENTED, start=1):
            sealed = shares[place].numpy().tobytes()
            held[site], _ = opened(site, keys[site], VICTIM, public[VICTIM], sealed, self.context)
        seed = combine(held, 4)
        lost = {site: one.masking for site, one in keys.items()}
        return unmasked(vector, [seed], lost, {VICTIM: vector}, public, self.context)


def test_without_signatures_one_site_is_read_by_a_server_that_plays_the_others(tmp_path: Path) -> None:
    """That the attack below is one: a site that verified nothing would be read to the last digit."""
    server = Server.before(tmp_path, signatory=None)
    vector = server.recovered()
    model = EXPERIMENT.build_model(0)
    total = Encoding(STEP.stage, model, EXPERIMENT.classes, len(NAMES)).decode(vector)
    assert total.class_counts == [9, 9]


def test_a_server_that_plays_the_other_sites_is_told_nothing(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="'shares' cannot be answered: an offer is malformed"):
        Server.before(tmp_path).recovered()


def signed(name: str, site: int, context: Context, public: bytes, experiment: str, key: Any = None) -> bytes:
    own = key or key_of(name)
    named = [fingerprint(key_of(one).public_key()) for one in NAMES]
    named[site] = fingerprint(own.public_key())
    return Signatory(own, experiment, tuple(named)).offer(public, site, context)


@pytest.mark.parametrize("phase", [Phase.SHARES, Phase.MASKED, Phase.OPEN])
@pytest.mark.parametrize(
    "trick",
    [
        "another attempt",
        "another step",
        "another run",
        "another experiment",
        "another site's place",
        "a key that is not approved",
        "a key of another curve",
        "other masking keys",
        "no signature",
        "a flipped bit",
        "noise",
    ],
)
def test_no_key_but_one_signed_for_this_attempt_by_its_site_is_taken(tmp_path: Path, trick: str, phase: Phase) -> None:
    server = Server.before(tmp_path)
    assert server.site.signatory is not None
    experiment, context, own = server.site.signatory.experiment, server.context, server.ask(Phase.KEYS)
    public = {site: server.keys(site).public for site in INVENTED}
    offers = {site: signed(NAMES[site], site, context, public[site], experiment) for site in INVENTED}
    right = {"sites": torch.tensor([VICTIM, *INVENTED]), "keys": server.offers(own, offers)}
    assert len(server.ask(Phase.SHARES, **right)) == 5  # as these are, they would be taken
    other = {
        "another attempt": replace(context, attempt=os.urandom(16)),
        "another step": replace(context, step=context.step + 1),
        "another run": replace(context, run="another"),
    }.get(trick, context)
    if trick == "another site's place":
        offers[2] = signed(NAMES[2], 3, context, public[2], experiment)
    elif trick == "a key that is not approved":
        offers[2] = signed(NAMES[2], 2, context, public[2], experiment, ec.generate_private_key(ec.SECP384R1()))
    elif trick == "a key of another curve":
        offers[2] = signed(NAMES[2], 2, context, public[2], experiment, ec.generate_private_key(ec.SECP521R1()))
    elif trick == "other masking keys":
        offers[2] = public[3] + offers[2][PUBLIC_BYTES:]
    elif trick == "no signature":
        offers[2] = unsigned(public[2])
    elif trick == "a flipped bit":
        place = OFFER_BYTES - 60
        offers[2] = offers[2][:place] + bytes([offers[2][place] ^ 1]) + offers[2][place + 1 :]
    elif trick == "noise":
        offers[2] = public[2] + os.urandom(OFFER_BYTES - PUBLIC_BYTES)
    else:
        named = "0" * 64 if trick == "another experiment" else experiment
        offers[2] = signed(NAMES[2], 2, other, public[2], named)
    wrong = right | {"keys": server.offers(own, offers)}
    if phase is Phase.OPEN:
        wrong |= {"shares": torch.zeros(5, 82, dtype=torch.uint8), "survivors": right["sites"]}
    with pytest.raises(ProtocolError, match=rf"'{phase.value}' cannot be answered: (.*site 2 |an offer is malformed)"):
        server.ask(phase, **wrong)


def test_a_site_whose_key_is_not_the_one_that_was_approved_offers_nothing(tmp_path: Path) -> None:
    server = Server.before(tmp_path)
    assert server.site.signatory is not None
    server.site = replace(server.site, signatory=replace(server.site.signatory, key=key_of("another")))
    with pytest.raises(ProtocolError, match=r"this site's key is SHA256:.*, but the experiment names SHA256:"):
        server.ask(Phase.KEYS)


@pytest.mark.parametrize("keys", [[], ["SHA256:short"] * 5, [f"SHA256:{'a' * 43}"] * 5, [f"SHA256:{'a' * 43}"]])
def test_an_experiment_that_names_no_key_for_each_site_is_refused(keys: list[str]) -> None:
    plain = CONFIG.model_dump(mode="json")
    plain["federation"]["site_keys"] = keys or None
    with pytest.raises(ConfigError, match="site_keys"):
        resolve(plain, "an experiment", {})
