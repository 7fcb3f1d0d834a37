"""The configuration of an experiment: one YAML file, validated once, frozen, and identified by its content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from dynammo_core.configuration.compute import ComputeSettings
from dynammo_core.configuration.federation import FederationSettings
from dynammo_core.configuration.gate import GateSettings
from dynammo_core.configuration.limits import LimitSettings
from dynammo_core.configuration.optimisation import Optimisation
from dynammo_core.configuration.overrides import Scalar as Scalar
from dynammo_core.configuration.overrides import beside, placed, set_leaf
from dynammo_core.configuration.privacy import PrivacySettings
from dynammo_core.configuration.scanners import ScannerSettings
from dynammo_core.configuration.settings import (
    BackboneSettings,
    DataSettings,
    FirstBackbone,
    MemorySettings,
    MethodSettings,
    TaskSettings,
)
from dynammo_core.methods import METHODS, settings_of
from dynammo_core.models import BACKBONES
from dynammo_core.support.errors import ConfigError, unknown_name
from dynammo_core.support.yaml_files import Section, read_yaml, validate

if TYPE_CHECKING:
    from dynammo_core.data.transforms import Normalisation

M = TypeVar("M", bound=MethodSettings)


class Config(Section, Generic[M]):
    """Everything that decides what an experiment computes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run directory, before its hash")
    seed: int = Field(default=1, ge=0, description="random seed of the whole experiment")
    data: DataSettings
    tasks: TaskSettings = TaskSettings()
    federation: FederationSettings = FederationSettings()
    limits: LimitSettings = LimitSettings()
    scanners: ScannerSettings = ScannerSettings()
    backbone: FirstBackbone = FirstBackbone()
    method: M
    memory: MemorySettings = MemorySettings()
    privacy: PrivacySettings = PrivacySettings()
    compute: ComputeSettings = ComputeSettings()
    gate: GateSettings = GateSettings()

    @field_validator("limits")
    @classmethod
    def _of_the_named(cls, limits: LimitSettings, info: ValidationInfo) -> LimitSettings:
        federation = info.data.get("federation")
        if federation is not None and isinstance(limits.most_images, dict):
            for name in sorted(set(limits.most_images) - set(federation.site_names or ())):
                raise ValueError(
                    f"most_images: {unknown_name('site', name, federation.site_names or ())}; accepted: names of "
                    "federation.site_names, or one number for all sites"
                )
        return limits

    @field_validator("scanners")
    @classmethod
    def _simulated(cls, scanners: ScannerSettings, info: ValidationInfo) -> ScannerSettings:
        federation = info.data.get("federation")
        if scanners.kind != "same" and federation is not None and federation.site_names:
            raise ValueError(
                f"{scanners.kind} is for simulated sites only; the sites in federation.site_names have real scanners, "
                "and their images are not changed; set scanners.kind: same"
            )
        return scanners

    @field_validator("backbone")
    @classmethod
    def _pinned_among_hospitals(cls, backbone: FirstBackbone, info: ValidationInfo) -> FirstBackbone:
        """Whoever makes the weights can make sums reveal images: what was approved must be what is loaded."""
        federation = info.data.get("federation")
        if federation is None or not federation.site_names:
            return backbone
        for network in (backbone, *backbone.changes):
            if network.sha256 or not network.comes_from_the_net:
                continue
            if network.weights == "random":
                raise ValueError(
                    f"{network.name} with weights: random takes its shape from the net, and nothing pins it; name the "
                    "architecture as timm/NAME"
                )
            raise ValueError(
                f"sha256 must pin what hospitals load as {network.name}: whoever owns the file could exchange it after "
                f"approval; `dynammo-sim backbone fetch {network.name} --out FOLDER` prints it"
            )
        return backbone

    @field_validator("method")
    @classmethod
    def _fits(cls, method: M, info: ValidationInfo) -> M:
        federation, backbone = info.data.get("federation"), info.data.get("backbone")
        if federation is None or backbone is None:  # what is missing is refused already
            return method
        if misfit := method.misfit(federation, backbone):
            raise ValueError(misfit)
        if backbone.changes and not method.outlives_network:
            able = ", ".join(name for name in METHODS if settings_of(name, "method.name").outlives_network)
            raise ValueError(f"{method.name} cannot go over to another network (backbone.changes); accepted: {able}")
        if federation.optimises and not any(isinstance(value, Optimisation) for _, value in method):
            raise ValueError(
                f"{method.name} trains nothing by gradients, and federation.{federation.optimises} changes training; "
                "leave federation.proximal and federation.server_optimizer as they are by default"
            )
        return method.fitted_to(backbone, federation)

    @field_validator("privacy")
    @classmethod
    def _can_be_kept(cls, privacy: PrivacySettings, info: ValidationInfo) -> PrivacySettings:
        mechanism, method, federation = privacy.mechanism, info.data.get("method"), info.data.get("federation")
        if mechanism == "none" or method is None or federation is None:  # what is missing is refused already
            return privacy
        if federation.secure_aggregation:
            raise ValueError(
                f"{mechanism} cannot be combined with federation.secure_aggregation: each site sends the server its "
                "own spent budget and noised counts; turn one of the two off"
            )
        if kept := [name for name, value in method if isinstance(value, Optimisation) and value.keep == "best"]:
            raise ValueError(
                f"{mechanism} cannot be combined with method.{kept[0]}.keep: best: the loss on images held out tells "
                "of them without noise; set it to last"
            )
        if obstacle := method.obstacle_to_privacy(mechanism):
            raise ValueError(f"{mechanism} cannot be combined with method.name: {method.name}: {obstacle}")
        scanners = info.data.get("scanners")
        if mechanism == "example" and scanners is not None and scanners.own_statistics != "none":
            raise ValueError(
                f"example cannot be combined with scanners.own_statistics: {scanners.own_statistics}: through a site's "
                "own statistics, each image changes the features of all others; set scanners.own_statistics: none"
            )
        if mechanism == "example" and federation.shortens_sums:
            raise ValueError(
                "example cannot be combined with federation.sums_rows or federation.sums_precision: a noised Gram "
                "matrix has no thin factor; leave both as they are by default"
            )
        if mechanism == "client" and federation.aggregator != "mean":
            raise ValueError(
                f"client cannot be combined with federation.aggregator: {federation.aggregator}: the noise is "
                "calibrated for a mean in which all sites weigh the same; set federation.aggregator: mean"
            )
        if mechanism == "example" and federation.arrival != "synchronous":
            raise ValueError(
                f"example cannot be combined with federation.arrival: {federation.arrival}: the task in which a class "
                "arrives would reveal which site has it; set federation.arrival: synchronous"
            )
        return privacy

    @field_validator("gate")
    @classmethod
    def _can_be_measured(cls, gate: GateSettings, info: ValidationInfo) -> GateSettings:
        federation = info.data.get("federation")
        if gate.worst_site is not None and federation is not None and federation.secure_aggregation:
            raise ValueError(
                "worst_site cannot be combined with federation.secure_aggregation: the server learns sums over sites, "
                "and no site's accuracy; bound retention or class_recall"
            )
        return gate

    @model_validator(mode="after")
    def _registry_of_the_named(self) -> Self:
        if self.federation.site_names and self.data.classes is None:
            raise ValueError(
                "federation.site_names needs data.classes: the server has no images from which to read the class names"
            )
        return self

    @property
    def normalisation(self) -> str | Normalisation:
        """Return how pixels are normalised: by its name, or as mean and deviation where the backbone's weights say."""
        named = self.data.normalisation
        return BACKBONES[self.backbone.name].normalisation if named == "backbone" else named

    def backbone_of(self, task: int) -> BackboneSettings:
        """Return the network of a task, which counts from 0: the first one, or the last that came until then."""
        found = [self.backbone, *(later for later in self.backbone.changes if later.task <= task + 1)][-1]
        return BackboneSettings(
            name=found.name, weights=found.weights, sha256=found.sha256, image_size=found.image_size
        )

    def canonical_json(self) -> str:
        """Return the resolved configuration as JSON with sorted keys: the same content gives the same text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def content_hash(self) -> str:
        """Return the SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def run_name(self) -> str:
        """Return the name of the run directory: the experiment's, and the first eight digits of the content hash."""
        return f"{self.name}-{self.content_hash[:8]}"

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML, every default filled in, in the order of its sections."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path | str, overrides: Mapping[str, Scalar] | None = None) -> Config[Any]:
    """Read an experiment's YAML file and return its validated configuration.

    Args:
        path: the file.
        overrides: values by dotted key, such as {"federation.sites": 10}; texts are read as YAML, relative paths from
            the working directory. Another `method.name` replaces the file's whole section `method`.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is not accepted; the message names the remedy.
    """
    path = Path(path)
    data, tree = read_yaml(path)
    return resolve(beside(path, data), str(path), placed(overrides or {}), tree)


def resolve(data: Any, source: str, overrides: Mapping[str, Scalar], tree: yaml.Node | None = None) -> Config[Any]:
    """Validate plain data as a configuration; `source` and `tree` are for error messages."""
    if not isinstance(data, dict):
        raise ConfigError(f"{source} must contain a mapping of keys to values", accepted=", ".join(Config.model_fields))
    method = data.get("method")
    if isinstance(method, dict) and overrides.get("method.name", method.get("name")) != method.get("name"):
        data["method"] = {}  # another method has other parameters: it starts from its own defaults
    for key, value in overrides.items():
        set_leaf(data, key, value)
    method = data.get("method")
    if method is not None and not isinstance(method, dict):
        remedy = f"Write method: {{name: {method}}} or --set method.name={method}"
        raise ConfigError(f"{source}, method: {method!r} is not a section", remedy=remedy)
    name = str((method or {}).get("name") or "")
    if not name:
        raise ConfigError(f"{source}, method.name: no method is named", accepted=", ".join(METHODS))
    params = settings_of(name, f"{source}, method.name")
    return validate(_config_of(params), data, source, tree, overrides)


def leaf_keys() -> list[str]:
    """Return the dotted key of every leaf that a method of this project may have in its configuration, sorted."""
    models = [_config_of(settings_of(name, "method.name")) for name in METHODS.built_in]
    return sorted({leaf for model in models for leaf in _leaves(model)})


def _config_of(params: type[MethodSettings]) -> type[Config[Any]]:
    return Config.__class_getitem__(params)  # type: ignore[return-value]


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _leaves(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
