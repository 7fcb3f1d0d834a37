"""`policy.yaml`: what a hospital takes part in at all, whatever an operator asks and a person here approves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from client.consent.fewest import Fewest
from dynammo_core.configuration.config import Config
from dynammo_core.plan import Fit
from dynammo_core.support.errors import PolicyError, nearest_match
from dynammo_core.support.yaml_files import Section, read_yaml, validate

if TYPE_CHECKING:
    from dynammo_core.experiment import Experiment

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
TIME = r"([01]\d|2[0-3]):[0-5]\d"
POLICY_TEMPLATE = """\
# What this site takes part in, for `dynammo-site`. It is looked at before each instruction; what it forbids is refused
# (code 109), whoever approved it. Remove the # of a line to use it.

# A class of which this site holds fewer training (test) images takes no part here: it is not trained, remembered,
# tested or announced, so that no smaller count leaves.
fewest_images: 5
# The same for the number of patients whom they show. Raise it where the data name patients, since five images of
# one patient are one person's. Where the data name none, each image counts as a patient.
fewest_patients: 1
# Whether sums over all sites' images may go to every site (method.personal), which can subtract what it knows.
sums_of_others: false
# Whether the operator may ask which classes this site holds, with bands of their numbers of images.
announce: true
# Whether the operator may ask how many images and patients of each class there are, how large and how bright the images
# are. Numbers are exact from fewest_images on, and one site's stand beside another's, secure aggregation or not.
statistics: false

# The methods of learning that are allowed.
# methods: [dynammo, replay]
# The pretrained networks that are allowed, by name, or by the SHA-256 that backbone.sha256 pins.
# backbones: [efficientnet_lite0]
# The classes that may be learnt; an experiment with any other is refused.
# classes: [normal, pneumonia]
# After withdrawn records were taken out of a run's sums, its steps may be asked anew; at most so many times.
# most_corrections: 5
# At most so many tasks, and so many rounds of training in all of them together.
# most_tasks: 10
# most_rounds: 500
# Differential privacy is required, with an epsilon of at most this. What all runs here cost adds up.
# most_epsilon: 8.0
# Then by these mechanisms. With `client` raw updates leave, and the server alone adds noise.
# mechanisms: [example]
# Then for these units. With `image` several images of a patient are not hidden as one.
# units: [patient]
# Then with a delta of at most this, at which all runs are added up.
# most_delta: 1.0e-5
# When this site answers, by its own clock; a night counts as the day on which it began.
# weekdays: [mon, tue, wed, thu, fri]
# hours: "20:00-06:00"
"""


class Policy(Section):
    """A site's limits. Those that are None forbid nothing."""

    fewest_images: int = Field(
        default=5, ge=1, description="a class of which the site holds fewer images takes no part"
    )
    fewest_patients: int = Field(
        default=1,
        ge=1,
        description="a class whose images show fewer patients takes no part; each image counts as a patient where the "
        "data name none",
    )
    sums_of_others: bool = Field(
        default=False,
        description="whether sums in which this site's are may go to the other sites, as `method.personal` asks",
    )
    announce: bool = Field(
        default=True, description="whether the operator may ask for class names and bands of image counts"
    )
    statistics: bool = Field(
        default=False,
        description="whether the operator may ask for numbers of images and patients by class, and of images by size "
        "and brightness; none below fewest_images",
    )
    methods: tuple[str, ...] | None = Field(default=None, description="methods that are allowed; null: all")
    backbones: tuple[str, ...] | None = Field(
        default=None,
        description="pretrained networks that are allowed, each by its name or by the SHA-256 that `backbone.sha256` "
        "pins; null: all",
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="classes that may be learnt; an experiment with another one is refused; null: all"
    )
    most_corrections: int = Field(
        default=5, ge=0, description="how often withdrawn records may be taken out of the sums of a run"
    )
    most_tasks: int | None = Field(default=None, ge=1, description="largest number of tasks of an experiment")
    most_rounds: int | None = Field(
        default=None, ge=1, description="largest number of training rounds, all tasks together"
    )
    most_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="requires differential privacy, and limits epsilon per experiment and for all runs together",
    )
    mechanisms: tuple[Literal["example", "client"], ...] = Field(
        default=("example",),
        min_length=1,
        description="mechanisms that satisfy most_epsilon; with client, raw updates leave the site",
    )
    units: tuple[Literal["image", "patient"], ...] = Field(
        default=("image", "patient"),
        min_length=1,
        description="units of mechanism example that satisfy most_epsilon; with image, several images of a patient are "
        "not hidden as one",
    )
    most_delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="largest delta that satisfies most_epsilon; the ledger of all runs is added up at it",
    )
    weekdays: tuple[Weekday, ...] | None = Field(
        default=None,
        description="days on which the site answers, such as [mon, fri]; a night belongs to the day it began",
    )
    hours: str | None = Field(
        default=None,
        pattern=rf"^{TIME}-{TIME}$",
        description='hours in which the site answers, such as "20:00-06:00", by its own clock',
    )

    @property
    def fewest(self) -> Fewest:
        """Return the least that an answer may speak of, class by class."""
        return Fewest(self.fewest_images, self.fewest_patients)


def load_policy(path: Path | None) -> Policy:
    """Read a `policy.yaml`; without a path, the policy of a site that has none.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is invalid; the error names file, line and key.
    """
    if path is None:
        return Policy()
    data, tree = read_yaml(path)
    return validate(Policy, data, str(path), tree)


def violations(policy: Policy, config: Config[Any]) -> list[str]:
    """List what the policy forbids in an experiment, a sentence each."""
    return list(_violations(policy, config))


def refuse_when_closed(policy: Policy, now: datetime) -> None:
    """Refuse to answer outside the days and hours of the policy.

    Raises:
        PolicyError: it is another time.
    """
    start, end = (policy.hours or "00:00-00:00").split("-")
    time = f"{now:%H:%M}"
    over_midnight = end <= start
    day = now - timedelta(days=1) if over_midnight and time < end else now
    open_now = time >= start or time < end if over_midnight else start <= time < end
    if not open_now or (policy.weekdays is not None and WEEKDAYS[day.weekday()] not in policy.weekdays):
        when = " ".join(filter(None, [", ".join(policy.weekdays or ()), policy.hours]))
        raise PolicyError(f"it is {WEEKDAYS[now.weekday()]} {time} here", accepted=when)


def refuse_corrections(policy: Policy, corrections: int) -> None:
    """Refuse more corrections of a run's sums than the policy allows: each lets every step be asked once more.

    Raises:
        PolicyError: this is one too many.
    """
    if not 0 <= corrections <= policy.most_corrections:
        raise PolicyError(
            f"correction {corrections} of the sums of a run is one too many",
            accepted=f"0 to {policy.most_corrections}",
            remedy="Collect withdrawals, and correct the sums once for all; or raise most_corrections in the policy",
        )


def _violations(policy: Policy, config: Config[Any]) -> Iterator[str]:
    if config.data.classes is None:
        yield "it names no classes, as every experiment among hospitals does"
        return
    from dynammo_core.experiment import Experiment  # PyTorch, which reading a policy does not need

    experiment = Experiment(config)
    if policy.methods is not None and (name := config.method.name) not in policy.methods:
        yield f"the method {name} is not among those allowed{nearest_match(name, policy.methods)}"
    if not policy.sums_of_others and experiment.method.evaluation().own_heads:
        yield "it sends sums in which this site's are to the other sites, and sums_of_others is false"
    for network in (config.backbone, *config.backbone.changes):
        if policy.backbones is not None and not {network.name, network.sha256} & {*policy.backbones}:
            near = nearest_match(network.name, policy.backbones)
            yield f"the backbone {network.name} is not among those allowed{near}"
    if policy.classes is not None:
        unknown = [name for name in config.data.classes if name not in policy.classes]
        if unknown:
            yield f"the classes {', '.join(unknown)} are not among those allowed"
    if policy.most_tasks is not None and (tasks := len(experiment.stream)) > policy.most_tasks:
        yield f"{tasks} tasks are more than {policy.most_tasks}"
    if policy.most_rounds is not None and (rounds := training_rounds(experiment)) > policy.most_rounds:
        yield f"{rounds} rounds of training are more than {policy.most_rounds}"
    # Not «greater than»: NaN is not at most anything.
    if policy.most_epsilon is not None and not (epsilon := promised_epsilon(config)) <= policy.most_epsilon:
        promised = "no differential privacy" if math.isinf(epsilon) else f"epsilon {epsilon:g}"
        yield f"{promised}, and epsilon {policy.most_epsilon:g} is required"
    elif policy.most_epsilon is not None:
        yield from _weak_privacy(policy, config)


def _weak_privacy(policy: Policy, config: Config[Any]) -> Iterator[str]:
    mechanism, unit, delta = config.privacy.mechanism, config.privacy.unit, config.privacy.delta
    if mechanism not in policy.mechanisms:
        yield f"the mechanism {mechanism} is not among those allowed: {', '.join(policy.mechanisms)}"
    if mechanism == "example" and unit not in policy.units:
        yield f"the unit {unit} is not among those allowed: {', '.join(policy.units)}"
    if not delta <= policy.most_delta:
        yield f"delta {delta:g} is more than {policy.most_delta:g}"


def training_rounds(experiment: Experiment) -> int:
    """Return the rounds of training of all tasks together, without listing them: a server may ask for a billion."""
    stages = (stage for task in range(len(experiment.stream)) for stage in experiment.method.all_stages(task))
    return sum(stage.rounds for stage in stages if isinstance(stage, Fit))


def promised_epsilon(config: Config[Any]) -> float:
    """Return the largest epsilon that an experiment's section `privacy` names; infinity if nothing is promised."""
    section = config.model_dump(mode="json").get("privacy")
    if not isinstance(section, Mapping) or any(
        value is False or value in ("none", "off") for value in section.values()
    ):
        return math.inf
    return max(_epsilons(section), default=math.inf)


def _epsilons(section: Mapping[str, Any]) -> Iterator[float]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _epsilons(value)
        elif "epsilon" in key and isinstance(value, int | float) and not isinstance(value, bool):
            yield float(value)
