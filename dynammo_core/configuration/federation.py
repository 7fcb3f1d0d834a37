"""The section `federation` of an experiment: who takes part, how long a round waits, how answers are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dynammo_core.aggregation import AGGREGATORS
from dynammo_core.support.errors import require_printable
from dynammo_core.support.yaml_files import Section

FINGERPRINT = r"SHA256:[A-Za-z0-9+/]{43}"
"""Pattern of a public key's SHA-256, as `ssh-keygen -l` prints it."""


class RoundRules(Section):
    """A stage's own rules for its rounds; what is left out is as for the other stages."""

    quorum: float | None = Field(default=None, gt=0, le=1)
    deadline_seconds: float | None = Field(default=None, gt=0)


MORE_THAN_TWICE_THE_LIARS: Mapping[str, int] = MappingProxyType(
    {"median": 1, "trimmed_mean": 1, "krum": 3, "multi_krum": 3, "norm_clipping": 1}
)
"""How many sites an aggregator needs beyond twice those that may lie: else liars may be the majority (Yin et al., arXiv
1803.01498), or each other's nearest (Blanchard et al., arXiv 1703.02757)."""


class FederationSettings(Section):
    """Who takes part, how a simulation spreads the data, and how long the server waits."""

    sites: int = Field(default=1, ge=1, le=10_000, description="number of sites; site_names decide it if given")
    partition: Literal["iid", "dirichlet", "quantity", "natural"] = Field(
        default="iid",
        description="how images are spread over simulated sites; dirichlet: label skew; quantity: size skew; natural: "
        "the data's own sites",
    )
    alpha: float = Field(
        default=0.5, gt=0, description="concentration of dirichlet and quantity: a smaller value means more skew"
    )
    arrival: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous", description="asynchronous: a class may reach some sites some tasks later than others"
    )
    max_delay: int = Field(default=2, ge=0, description="longest delay of asynchronous arrival, in tasks")
    site_names: tuple[str, ...] | None = Field(
        default=None,
        description="registered names of the hospitals that take part, in a fixed order; null: simulated sites",
    )
    site_keys: tuple[str, ...] | None = Field(
        default=None,
        description="fingerprints of the registered keys of site_names, in the same order; secure aggregation among "
        "hospitals needs them",
    )
    evaluate_only: tuple[str, ...] = Field(
        default=(), description="names from site_names of the sites that test but do not train"
    )
    quorum: float = Field(default=1.0, gt=0, le=1, description="fraction of the sites that must answer in each round")
    deadline_seconds: float = Field(default=3600, gt=0, description="seconds that a round waits for its slowest site")
    stages: dict[str, RoundRules] | None = Field(
        default=None, description="quorum or deadline that differs in a stage, such as {adapt: {quorum: 0.5}}"
    )
    attempts: int = Field(default=1, ge=1, description="number of times that a round asks a site that fails")
    patience_seconds: float = Field(
        default=120,
        gt=0,
        description="seconds that a round waits for a site that is not connected",
    )
    compression: Literal["none", "float16", "int8", "int8_both"] = Field(
        default="none",
        description="encoding of float32 tensors on the wire; float16: half the bytes, both ways; int8: float16 to the "
        "sites, int8 differences of matrices back; int8_both: matrices in int8 to the sites too",
    )
    aggregator: Annotated[str, AGGREGATORS] = Field(
        default="mean", description="rule that merges the answers of the sites"
    )
    liars: int = Field(default=1, ge=0, description="number of malicious or faulty sites to withstand; mean ignores it")
    mixing: bool = Field(
        default=True,
        description="replace each update by the mean of its nearest neighbours before aggregation, which helps when "
        "labels are skewed; mean ignores it",
    )
    proximal: float = Field(
        default=0.0,
        ge=0,
        description="mu of FedProx: how strongly training is drawn to the weights that the round began with; 0: not",
    )
    server_optimizer: Literal["none", "momentum", "adam", "yogi"] = Field(
        default="none",
        description="how the server goes from the weights it sent to the sites' merged ones; none: all the way; "
        "momentum: FedAvgM; adam: FedAdam; yogi: FedYogi",
    )
    server_learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="learning rate of the server's optimiser; null: 1 for momentum, 0.01 for adam and yogi",
    )
    server_momentum: float = Field(
        default=0.9, ge=0, lt=1, description="momentum of the server's optimiser, beta_1 of adam and yogi"
    )
    server_beta_2: float = Field(
        default=0.99, ge=0, lt=1, description="share of the squares that adam and yogi keep from round to round"
    )
    server_tau: float = Field(
        default=1e-3, gt=0, description="length of change below which adam and yogi adapt little to it"
    )

    sums_rows: int | None = Field(
        default=None,
        ge=1,
        description="most rows of the factor in which a site's Gram matrix travels where that is shorter; fewer than "
        "its images lose part of it, all but each feature's variance, and no record can leave the sums; null: all, "
        "which loses nothing",
    )
    sums_precision: Literal["float64", "float32"] = Field(
        default="float64", description="type of that factor's numbers; float32: half the bytes, seven digits"
    )
    secure_aggregation: bool = Field(
        default=False,
        description="let the server learn only the sum of the answers; needs aggregator: mean, compression: none and "
        "at least 3 sites that train",
    )
    secure_threshold: int | None = Field(
        default=None, description="number of sites that must stay to the end of a step; null: more than two thirds"
    )

    @model_validator(mode="before")
    @classmethod
    def _count_names(cls, section: Any) -> Any:
        """Fill in the number of sites if their names are given."""
        if isinstance(section, dict) and isinstance(names := section.get("site_names"), list | tuple):
            return {"sites": len(names), **section}
        return section

    @field_validator("liars")
    @classmethod
    def _few_enough(cls, liars: int, info: ValidationInfo) -> int:
        aggregator, beyond = str(info.data.get("aggregator")), MORE_THAN_TWICE_THE_LIARS
        sites = info.data.get("sites", 1) - len(info.data.get("evaluate_only", ()))
        if aggregator in beyond and sites < (fewest := 2 * liars + beyond[aggregator]):
            raise ValueError(
                f"{aggregator} with {liars} liars needs at least {fewest} sites that train "
                f"(twice the liars plus {beyond[aggregator]}), but there are {sites}"
            )
        return liars

    @field_validator("sums_precision")
    @classmethod
    def _once(cls, precision: str, info: ValidationInfo) -> str:
        if precision == "float32" and (compression := info.data.get("compression")) != "none":
            raise ValueError(
                f"float32 factors would be rounded again by compression: {compression}; set sums_precision: float64, "
                "which that leaves as it is, or compression: none"
            )
        return precision

    @property
    def shortens_sums(self) -> bool:
        """Return whether sums travel in fewer numbers, or smaller ones, than tell all of them."""
        return self.sums_rows is not None or self.sums_precision != "float64"

    @field_validator("secure_aggregation")
    @classmethod
    def _only_sums(cls, secure: bool, info: ValidationInfo) -> bool:
        aggregator, compression = info.data.get("aggregator", "mean"), info.data.get("compression", "none")
        if secure and (aggregator, compression) != ("mean", "none"):
            what = f"{compression} packs" if aggregator == "mean" else f"{aggregator} works on"
            raise ValueError(
                f"{what} single updates, but with secure aggregation the server must see none; "
                "set aggregator: mean and compression: none"
            )
        if secure and (info.data.get("sums_rows") or info.data.get("sums_precision") == "float32"):
            raise ValueError(
                "the vectors of all sites must have one length, so Gram matrices travel whole; leave sums_rows and "
                "sums_precision as they are by default"
            )
        sites = info.data.get("sites", 3) - len(info.data.get("evaluate_only", ()))
        if secure and sites < 3:
            raise ValueError(f"a sum hides its terms only among 3 or more sites that train, but there are {sites}")
        return secure

    @field_validator("secure_threshold")
    @classmethod
    def _majority(cls, threshold: int | None, info: ValidationInfo) -> int | None:
        sites = info.data.get("sites", 1)
        training = sites - len(info.data.get("evaluate_only", ()))
        if threshold is not None and info.data.get("secure_aggregation") and not sites < 2 * threshold <= 2 * training:
            raise ValueError(
                f"{threshold} must be more than half of all {sites} sites, since the server could deceive two separate "
                f"halves; and it must be at most {training}, the number of sites that train"
            )
        return threshold

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = self.site_names
        if names is None:
            for key in ("evaluate_only", "site_keys"):
                if value := getattr(self, key):
                    raise ValueError(f"{key} {list(value)} needs site_names")
            return self
        if not all(names) or len(set(names)) < len(names) or len(names) != self.sites:
            raise ValueError(f"site_names {list(names)} must name each of the {self.sites} sites exactly once")
        require_printable("site", names)
        if not set(self.evaluate_only) < set(names):
            raise ValueError(
                f"evaluate_only {list(self.evaluate_only)} must contain some, but not all, of {list(names)}"
            )
        self._check_keys(names)
        if self.arrival != "synchronous":
            raise ValueError(
                "arrival: asynchronous is for simulated sites only; named sites bring classes when they have them; "
                "set arrival: synchronous"
            )
        return self

    @property
    def optimises(self) -> str:
        """Return the name of a setting that changes how weights are trained, and is not as by default; else ''."""
        return "proximal" if self.proximal else "server_optimizer" if self.server_optimizer != "none" else ""

    def _check_keys(self, names: tuple[str, ...]) -> None:
        if self.site_keys is None:
            if self.secure_aggregation:
                raise ValueError(
                    "site_keys must contain the fingerprint of each site's key; otherwise a server could pretend to a "
                    "site to be all the others; `dynammo-server sites keys` prints the lines for the experiment's file"
                )
            return
        for key in self.site_keys:
            if not re.fullmatch(FINGERPRINT, key):
                raise ValueError(f"site_keys: {key!r} is not a fingerprint as `ssh-keygen -l` prints it: SHA256:...")
        if len(set(self.site_keys)) < len(self.site_keys) or len(self.site_keys) != len(names):
            raise ValueError(
                f"site_keys must contain one key for each of the {len(names)} site_names, without duplicates"
            )

    def rules(self, stage: str) -> tuple[float, float]:
        """Return a stage's quorum and its deadline in seconds."""
        rules = (self.stages or {}).get(stage, RoundRules())
        return rules.quorum or self.quorum, rules.deadline_seconds or self.deadline_seconds

    @property
    def tested_apart(self) -> int:
        """Return the number of sites whose tests the server can tell apart; 1 if it learns only their sum."""
        return 1 if self.secure_aggregation else self.sites

    def taking_part(self, *, testing: bool) -> list[int]:
        """Return the sites that a step asks: all, except those that only evaluate, which only a test asks."""
        names = self.site_names or ()
        idle = set() if testing else {names.index(name) for name in self.evaluate_only}
        return [site for site in range(self.sites) if site not in idle]

    def threshold(self, sites: int) -> int:
        """Return how many of the sites in a step of secure aggregation must stay until its end."""
        return self.secure_threshold or 2 * sites // 3 + 1

    def site_label(self, site: int) -> str:
        """Return the name of a site for people."""
        return self.site_names[site] if self.site_names else f"site {site}"
