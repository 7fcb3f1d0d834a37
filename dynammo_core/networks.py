"""The pretrained networks of an experiment: the first one, and those that take its place from a task on."""

from __future__ import annotations

from typing import Any

from dynammo_core.configuration.config import Config
from dynammo_core.configuration.settings import BackboneSettings
from dynammo_core.data.feature_cache import fingerprint
from dynammo_core.models import BACKBONES
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.copies import copied
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.scoring.maps import batch_within, largest_maps
from dynammo_core.support.errors import ConfigError


class Networks:
    """Builds each network once, when it is first asked for; tasks count from 0.

    Args:
        config: names the networks.
        frozen: whether they are never trained, so that all models share them.
    """

    def __init__(self, config: Config[Any], *, frozen: bool) -> None:
        self._config = config
        self._frozen = frozen
        self._built: dict[BackboneSettings, Backbone] = {}
        self._fingerprints: dict[str, str] = {}

    def of(self, task: int) -> Backbone:
        """Return the network of a task, the same object for all tasks that it learns."""
        settings = self._config.backbone_of(task)
        if settings not in self._built:
            backbone = build_backbone(settings, self._config.seed, self._config.data.image_size)
            self._built[settings] = backbone.freeze() if self._frozen else backbone
        return self._built[settings]

    def model(self, task: int) -> IncrementalModel:
        """Build a model on the network of a task, with no structure yet."""
        settings, backbone = self._config.backbone_of(task), self.of(task)
        return IncrementalModel(backbone if self._frozen else copied(backbone), _name_of(settings))

    def fingerprint(self, network: str) -> str:
        """Return a hash of the pretrained weights of a network that was built, by the name that its models have.

        It is made when it is first asked for: files that outlive the process need it, and hashing takes a while.
        """
        if network not in self._fingerprints:
            named = {_name_of(settings): backbone for settings, backbone in self._built.items()}
            self._fingerprints[network] = fingerprint(named[network].state_dict())
        return self._fingerprints[network]

    @property
    def first_tasks(self) -> tuple[int, ...]:
        """Return the first task of each network."""
        return (0, *(later.task - 1 for later in self._config.backbone.changes))

    def check(self, tasks: int) -> None:
        """Refuse networks that want each its own pixels, as exemplars serve all, and sites' statistics of one alone.

        Raises:
            ConfigError: `data.normalisation` is `backbone` and the networks differ, sites keep statistics of their
                own, or a network would come after the last of so many tasks.
        """
        for later in self._config.backbone.changes:
            if later.task > tasks:
                raise ConfigError(
                    f"backbone.changes brings {later.name} with task {later.task} of {tasks}", accepted=f"2 to {tasks}"
                )
        own = self._config.scanners.own_statistics
        if self._config.backbone.changes and own != "none":
            raise ConfigError(
                f"scanners.own_statistics: {own} keeps statistics of one network, and backbone.changes brings another",
                remedy="Set scanners.own_statistics: none",
            )
        names = dict.fromkeys(self._config.backbone_of(task).name for task in self.first_tasks)
        if self._config.data.normalisation == "backbone" and len(names) > 1:
            ways = {name: BACKBONES[name].normalisation for name in names}
            if len(set(ways.values())) > 1:
                raise ConfigError(
                    "data.normalisation: backbone differs between the networks of backbone.changes: "
                    + "; ".join(f"{name} {way}" for name, way in ways.items()),
                    remedy="Set data.normalisation to a name or to numbers, which serve all of them",
                )

    @property
    def frozen_batch(self) -> int:
        """Return how many images fit through every network at a time."""
        size = self._config.data.image_size
        return min(batch_within(largest_maps(self.of(task), size)) for task in self.first_tasks)


def _name_of(settings: BackboneSettings) -> str:
    return f"{settings.name} {settings.weights} {settings.image_size}"
