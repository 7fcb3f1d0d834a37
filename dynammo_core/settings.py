"""The sections of an experiment's YAML: frozen pydantic models with their defaults and bounds, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
"""What a hospital may be called: it stands in file names and certificates."""


class Section(BaseModel):
    """A part of the configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataSettings(Section):
    """Which images, how many, and how they become tensors."""

    dataset: str = Field(description="a name of the table DATASETS")
    root: str | None = Field(default=None, description="folder (or manifest file) of the data; ~ is expanded")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="the registry of class names in their order, for image_folder and manifest: other labels are "
        "refused, classes without any image are not (default: the names found, sorted)",
    )
    sets: tuple[str, ...] | None = Field(
        default=None, description="the sets of medmnist, one after the other: a file's name without .npz for each"
    )
    image_size: int = Field(default=64, ge=8, le=1024, description="side in pixels that every image is resized to")
    normalisation: Literal["half", "imagenet"] = Field(
        default="half", description="half: (x - 0.5) / 0.5; imagenet: ImageNet's mean and standard deviation"
    )
    augmentation: Literal["none", "crop", "crop_flip"] = Field(
        default="none", description="random shifts of up to an eighth of the side; with flip, left-right mirroring"
    )
    train_per_class: int | None = Field(default=None, ge=1, description="keep this many training images a class")
    test_per_class: int | None = Field(default=None, ge=1, description="keep this many test images a class")
    validation_per_class: int = Field(
        default=0,
        ge=0,
        description="take this many training images a class from training, and test on them, not on the test set",
    )

    @field_validator("classes")
    @classmethod
    def _registry(cls, classes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if classes is not None and (not all(classes) or not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"{list(classes)} must name at least one class, none of them empty or twice")
        return classes

    @field_validator("sets")
    @classmethod
    def _no_set_twice(cls, sets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if sets is not None and (not sets or len(set(sets)) < len(sets)):
            raise ValueError(f"{list(sets)} must name at least one set, none of them twice")
        return sets


class TaskSettings(Section):
    """How classes arrive."""

    sizes: int | tuple[int, ...] = Field(default=2, description="classes a task, or one number for each task")
    class_order: Literal["fixed", "shuffled"] | tuple[int, ...] = Field(
        default="fixed",
        description="shuffled: by the seed; or class indices in the order in which they arrive: those left out take no "
        "part",
    )

    @field_validator("sizes")
    @classmethod
    def _positive(cls, sizes: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(sizes, int) and sizes < 1:
            raise ValueError(f"{sizes} classes a task make no task; at least 1 is needed")
        if isinstance(sizes, tuple) and (not sizes or min(sizes) < 1):
            raise ValueError(f"{list(sizes)} must name at least one task, each with at least one class")
        return sizes

    @field_validator("class_order")
    @classmethod
    def _no_class_twice(cls, order: str | tuple[int, ...]) -> str | tuple[int, ...]:
        if isinstance(order, tuple) and (not order or min(order) < 0 or len(set(order)) < len(order)):
            raise ValueError(f"{list(order)} must name at least one class, by its index from 0, none of them twice")
        return order


class RoundRules(Section):
    """What a stage asks of its rounds; what is left out is as for the other stages."""

    quorum: float | None = Field(default=None, gt=0, le=1)
    deadline_seconds: float | None = Field(default=None, gt=0)


MORE_THAN_TWICE_THE_LIARS: Mapping[str, int] = MappingProxyType(
    {"median": 1, "trimmed_mean": 1, "krum": 3, "multi_krum": 3, "norm_clipping": 1}
)
"""Sites that an aggregator needs beyond twice those that may lie: else liars may be the majority (Yin et al., arXiv
1803.01498), or each other's nearest (Blanchard et al., arXiv 1703.02757)."""


class FederationSettings(Section):
    """Who takes part, how a simulation spreads the data, and how long the server waits."""

    sites: int = Field(default=1, ge=1, le=10_000)
    partition: Literal["iid", "dirichlet", "quantity", "natural"] = Field(
        default="iid",
        description="how images are spread over simulated sites; dirichlet: skewed labels; quantity: skewed sizes; "
        "natural: the data's own `site` column",
    )
    alpha: float = Field(default=0.5, gt=0, description="concentration of dirichlet and quantity: less is more skewed")
    arrival: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous", description="asynchronous: a class may reach some sites in a later task than others"
    )
    max_delay: int = Field(default=2, ge=0, description="most tasks by which asynchronous arrival delays a class")
    site_names: tuple[str, ...] | None = Field(
        default=None,
        description="the hospitals that take part, by the names under which they are registered; without it sites are "
        "simulated",
    )
    evaluate_only: tuple[str, ...] = Field(default=(), description="those of site_names that test but do not train")
    quorum: float = Field(default=1.0, gt=0, le=1, description="share of the sites that must answer a round")
    deadline_seconds: float = Field(default=3600, gt=0, description="how long a round waits for its slowest site")
    stages: dict[str, RoundRules] | None = Field(
        default=None, description="another quorum or deadline in stages of these names, such as adapt: {quorum: 0.5}"
    )
    attempts: int = Field(default=1, ge=1, description="times that a site that fails in a round is asked")
    patience_seconds: float = Field(
        default=120,
        gt=0,
        description="how long a round waits for a site that is not connected",
    )
    compression: Literal["none", "float16", "int8", "int8_both"] = Field(
        default="none",
        description="how float32 travels; float16: both ways; int8: float16 to the sites and, of matrices, the "
        "difference in int8 back; int8_both: matrices in int8 to the sites, too",
    )
    aggregator: Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "norm_clipping"] = Field(
        default="mean", description="a name of the table AGGREGATORS"
    )
    liars: int = Field(default=1, ge=0, description="sites that may send anything; every aggregator but mean uses it")
    mixing: bool = Field(
        default=True,
        description="every aggregator but mean first brings each update to the mean of its nearest ones, which skewed "
        "labels need",
    )

    secure_aggregation: bool = Field(
        default=False, description="the server learns only the sum of the sites' answers; needs aggregator: mean"
    )
    secure_threshold: int | None = Field(default=None, description="sites that must stay (default: over two thirds)")

    @model_validator(mode="before")
    @classmethod
    def _count_names(cls, given: Any) -> Any:
        """Named sites need not be counted."""
        if isinstance(given, dict) and isinstance(names := given.get("site_names"), list | tuple):
            return {"sites": len(names), **given}
        return given

    @field_validator("liars")
    @classmethod
    def _few_enough(cls, liars: int, info: ValidationInfo) -> int:
        aggregator, beyond = str(info.data.get("aggregator")), MORE_THAN_TWICE_THE_LIARS
        sites = info.data.get("sites", 1) - len(info.data.get("evaluate_only", ()))
        if aggregator in beyond and sites < (fewest := 2 * liars + beyond[aggregator]):
            raise ValueError(
                f"{aggregator} withstands that many liars among {fewest} sites or more (twice their number and "
                f"{beyond[aggregator]}), and {sites} take part in training"
            )
        return liars

    @field_validator("secure_aggregation")
    @classmethod
    def _only_sums(cls, secure: bool, info: ValidationInfo) -> bool:
        aggregator, compression = info.data.get("aggregator", "mean"), info.data.get("compression", "none")
        if secure and (aggregator, compression) != ("mean", "none"):
            what = f"{compression} packs" if aggregator == "mean" else f"{aggregator} compares"
            raise ValueError(f"{what} single updates, of which the server is to see none; take mean and no compression")
        sites = info.data.get("sites", 3) - len(info.data.get("evaluate_only", ()))
        if secure and sites < 3:
            raise ValueError(f"a sum hides its terms among 3 sites or more, and {sites} take part in training")
        return secure

    @field_validator("secure_threshold")
    @classmethod
    def _majority(cls, threshold: int | None, info: ValidationInfo) -> int | None:
        sites = info.data.get("sites", 1)
        training = sites - len(info.data.get("evaluate_only", ()))
        if threshold is not None and info.data.get("secure_aggregation") and not sites < 2 * threshold <= 2 * training:
            raise ValueError(
                f"{threshold} must be more than half of all {sites} sites, or two halves could be told different "
                f"things, and at most the {training} that train"
            )
        return threshold

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = self.site_names
        if names is None:
            if self.evaluate_only:
                raise ValueError(f"evaluate_only {list(self.evaluate_only)} needs site_names")
            return self
        if not all(names) or len(set(names)) < len(names) or len(names) != self.sites:
            raise ValueError(f"site_names {list(names)} must name each of the {self.sites} sites, none of them twice")
        if not set(self.evaluate_only) < set(names):
            raise ValueError(f"evaluate_only {list(self.evaluate_only)} must be some, not all, of {list(names)}")
        if self.arrival != "synchronous":
            raise ValueError("arrival: asynchronous is a simulation's; sites with names bring classes when they come")
        return self

    def rules(self, stage: str) -> tuple[float, float]:
        """Quorum and deadline in seconds of a stage."""
        own = (self.stages or {}).get(stage, RoundRules())
        return own.quorum or self.quorum, own.deadline_seconds or self.deadline_seconds

    @property
    def tested_apart(self) -> int:
        """Number of sites whose tests the server can tell apart; 1 where it learns the sum alone."""
        return 1 if self.secure_aggregation else self.sites

    def taking_part(self, *, testing: bool) -> list[int]:
        """The sites that a step asks: all, but for those that only evaluate unless it is a test."""
        names = self.site_names or ()
        idle = set() if testing else {names.index(name) for name in self.evaluate_only}
        return [site for site in range(self.sites) if site not in idle]

    def threshold(self, sites: int) -> int:
        """Of so many sites that take part in a step of secure aggregation, those that must stay until its end."""
        return self.secure_threshold or 2 * sites // 3 + 1

    def site_label(self, site: int) -> str:
        """What people call a site."""
        return self.site_names[site] if self.site_names else f"site {site}"


class BackboneSettings(Section):
    """The pretrained network and where its weights come from."""

    name: str = "efficientnet_lite0"
    weights: str = Field(
        default="imagenet", description="imagenet, random (by the seed), or the path of a file with weights"
    )
    sha256: str | None = Field(default=None, description="refuse weights whose file has another SHA-256")


class MemorySettings(Section):
    """The private replay memory: exemplars stay on the disk of the site that holds the images."""

    exemplars: int = Field(default=200, ge=0, description="exemplars of all sites together, shared equally among them")
    selection: Literal["herding", "random", "closest_to_mean"] = "herding"
    quota_megabytes: float = Field(default=1024, gt=0, description="most disk space a site's memory may take")


class ComputeSettings(Section):
    """Where the arithmetic happens. Another number of threads may change the last bits of a result."""

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(default=1, ge=1, description="CPU threads of one site; fixed, so that results repeat")
    features: Literal["float32", "float16"] = Field(default="float32", description="how rounds keep features")
    feature_megabytes: int = Field(default=512, ge=0, description="memory for features kept from round to round")


class Optimisation(Section):
    """How one training stage descends: rounds across sites, local epochs, optimiser and schedule."""

    rounds: int = Field(default=1, ge=1, description="rounds of averaging across sites")
    epochs: int = Field(default=5, ge=1, description="local epochs in each round")
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(default=5e-4, ge=0)
    batch_size: int = Field(default=32, ge=2, description="at least 2: one image has no batch statistics")
    schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: tuple[int, ...] = Field(
        default=(), description="epochs, counted over all rounds of the stage, after which step divides the rate by 10"
    )


class MethodSettings(Section):
    """The section `method`: each method adds its own parameters to the name."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _complete_stages(cls, given: Any) -> Any:
        """What a stage's section leaves out is the method's own default of that stage, not the general one."""
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        if not isinstance(given, dict):
            return given
        return {
            name: {**defaults[name].model_dump(), **value}
            if isinstance(value, dict) and isinstance(defaults.get(name), Section)
            else value
            for name, value in given.items()
        }
