"""The only place that turns a configuration into objects: data, tasks, sites, network and method."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any

import torch

from dynammo_core.configuration.approval import config_from_json
from dynammo_core.configuration.config import Config
from dynammo_core.configuration.limits import most_samples
from dynammo_core.corrections import require_correctable
from dynammo_core.data.feature_cache import FeatureCache
from dynammo_core.data.index.contents import HashCache, hashes_kept_in
from dynammo_core.data.index.opening import open_dataset, open_own
from dynammo_core.data.samples import Dataset
from dynammo_core.data.sites.arrivals import Arrivals, build_arrivals, require_images
from dynammo_core.data.sites.site_partition import SitePartition, partition_sites
from dynammo_core.data.task_stream import TaskStream, build_task_stream
from dynammo_core.memory.rehearsal import check_room
from dynammo_core.methods import METHODS
from dynammo_core.methods.base import Method, plan_steps
from dynammo_core.models.copies import copied
from dynammo_core.models.heads import summed_names
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.networks import Networks
from dynammo_core.plan import Action, Forget, LearningStage, Step, Summarise
from dynammo_core.privacy.checks import check_samples_apart
from dynammo_core.privacy.plan import noise_of_run
from dynammo_core.privacy.units import require_patients
from dynammo_core.scoring.maps import require_passage
from dynammo_core.support.devices import find_device, limit_memory, repeat_bits
from dynammo_core.support.errors import ConfigError, ProtocolError, RunError, unknown_name
from dynammo_core.support.seeding import seeded_initialisation
from dynammo_core.wire.sums_form import WHOLE, SumsForm


class Experiment:
    """A validated configuration and what it describes, each part built when first asked for.

    Args:
        config: the configuration.
        hashes: where the hashes of image files are kept; None for this user's own cache.
    """

    def __init__(self, config: Config[Any], hashes: HashCache | None = None) -> None:
        self.config = config
        self._hashes = hashes
        self._templates: dict[int, IncrementalModel] = {}
        self._uses_torch = False

    @cached_property
    def dataset(self) -> Dataset:
        """Return all images, by index; if sites are named, those of this site."""
        opened = open_own if self.config.federation.site_names else open_dataset
        with hashes_kept_in(self._hashes):
            return opened(self.config.data, self.config.seed)

    @property
    def data_notes(self) -> tuple[str, ...]:
        """Return what a person should know of how a simulation's data are read; a run among hospitals reads none here.

        Raises:
            DataError: the data cannot be opened.
        """
        return () if self.config.federation.site_names else self.dataset.notes

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Return the registry of classes: the configuration's, else the data set's own."""
        return self.config.data.classes or self.dataset.class_names

    @property
    def classes(self) -> int:
        """Return the number C of classes."""
        return len(self.class_names)

    @cached_property
    def stream(self) -> TaskStream:
        """Return the stream of tasks: which classes arrive with which task."""
        return replace(build_task_stream(self.config.tasks, self.class_names, self.config.seed), names=self.class_names)

    @cached_property
    def partition(self) -> SitePartition:
        """Return which images each simulated site holds."""
        return partition_sites(self.dataset, self.config.federation, self.config.seed)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites as configured, or as a simulation's data name them; empty if neither does."""
        return self.config.federation.site_names or self.partition.names

    def site_label(self, site: int) -> str:
        """Return what people call a site: its name, or its number."""
        return self.site_names[site] if self.site_names else self.config.federation.site_label(site)

    @cached_property
    def arrivals(self) -> Arrivals:
        """Return with which task each class reaches each site; delays are simulated only if sites have no names."""
        config = self.config
        if config.federation.site_names:
            return Arrivals(self.stream, MappingProxyType({}))
        return build_arrivals(self.stream, self.dataset.train.labels, self.partition, config.federation, config.seed)

    @cached_property
    def method(self) -> Method[Any]:
        """Return the continual-learning method."""
        method = METHODS[self.config.method.name](self.config.method, self.stream, self.config.privacy)
        method.new_networks = frozenset(later.task - 1 for later in self.config.backbone.changes)
        return method

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Return every step of the run."""
        return plan_steps(self.method, len(self.stream))

    @property
    def protects_images(self) -> bool:
        """Tell whether each training image is protected by noise at its site."""
        return bool(self.config.privacy.mechanism == "example")

    @cached_property
    def noise_multiplier(self) -> float:
        """Return the run's noise multiplier: as configured, or the least that keeps the run within its budget.

        Raises:
            ConfigError: no noise is enough for the budget.
        """
        return noise_of_run(self.method, self.steps)

    def most_samples(self, site: int, action: Action) -> int:
        """Return how many samples a site's answer can speak for, according to `limits.most_images`."""
        images = self.config.limits.images(self.config.federation.site_label(site))
        return most_samples(images, action, self.config, self.classes)

    @property
    def keeps_sums(self) -> bool:
        """Tell whether the server keeps sums of all past images."""
        return any(isinstance(step.stage, Summarise) and step.stage.keeps_sums for step in self.steps)

    @property
    def keeps_plain_sums(self) -> bool:
        """Tell whether the server sees the sums of each site as they are."""
        federation = self.config.federation
        plain = not federation.secure_aggregation and federation.sums_rows is None
        return self.config.privacy.mechanism == "none" and plain

    @property
    def sums_form(self) -> SumsForm:
        """Return how sums for ridge regression travel; noise and masks need whole Gram matrices."""
        federation = self.config.federation
        if self.protects_images or federation.secure_aggregation:
            return WHOLE
        return SumsForm(rows=federation.sums_rows, precision=getattr(torch, federation.sums_precision))

    def step(self, index: int, correction: int = 0) -> Step:
        """Return a step of the plan or, if `correction` is not 0, a correction of the sums as they are after that step.

        Raises:
            ProtocolError: the plan has no such step.
            RunError: the method keeps no sums, or what a record brought to them is not known.
        """
        if not 0 <= index < len(self.steps):
            raise ProtocolError(f"the plan has no step {index}", accepted=f"0 to {len(self.steps) - 1}")
        step = self.steps[index]
        if not correction:
            return step
        stage = self.correction_stage(step.task)
        if stage is None:
            raise RunError(
                f"the method {self.config.method.name} keeps no sums from which a record can be removed",
                accepted=", ".join(name for name, method in METHODS.items() if method.Params.forgets),
                remedy="To remove what this model has learnt from a record, start a new run without the record",
            )
        require_correctable(self, step.task)
        return Step(index, step.task, stage, correction)

    def correction_stage(self, task: int) -> Forget | None:
        """Find the stage in which withdrawn records leave the sums of past images; None if the method keeps none."""
        sums = (stage.correction() for stage in self.method.stages(task) if isinstance(stage, Summarise))
        return next((stage for stage in sums if stage), None)

    @cached_property
    def device(self) -> torch.device:
        """Return the device that computes.

        Raises:
            ConfigError: the device asked for is not on this machine.
        """
        return find_device(self.config.compute.device, "compute.device")

    @cached_property
    def networks(self) -> Networks:
        """Return the pretrained networks."""
        return Networks(self.config, frozen=self.method.freezes_backbone)

    @cached_property
    def frozen_batch(self) -> int:
        """Return how many images at a time pass through what is not trained; the configuration decides, not a site."""
        return self.config.compute.batch_size_frozen or self.networks.frozen_batch

    @cached_property
    def feature_cache(self) -> FeatureCache:
        """Return the cache of what frozen parts of the network made of images in this process."""
        return FeatureCache(self.config.compute.feature_megabytes * 10**6)

    def new_model(self) -> IncrementalModel:
        """Build the network before the first task; all models of this experiment share a frozen backbone."""
        return self.networks.model(0)

    def build_model(self, task: int) -> IncrementalModel:
        """Build a network with the structure of `task`, into which all that changes in a run has yet to be loaded."""
        if task not in self._templates:
            self._templates = {kept: self._templates[kept] for kept in self._templates if kept == task - 1}
            self._templates[task] = self._grown(task, task + 1).eval()
        template = self._templates[task]
        if summed_names(template.heads):  # sums are large, and made of zeros that nothing has touched
            return self._grown(task, task + 1)
        return copied(template, shared=[self.networks.of(task)] if self.method.freezes_backbone else [])

    def model_before(self, task: int) -> IncrementalModel:
        """Build the network of a task with the structure that the task before left."""
        return self._grown(task, task)

    def _grown(self, task: int, tasks: int) -> IncrementalModel:
        model = self.networks.model(task)
        before = self.build_model(task - 1).feature_dim if task in self.method.new_networks else None
        with seeded_initialisation(self.config.seed, "structure"):
            for earlier in range(task):
                self.method.grow(model, earlier)
            model.features_before = before
            for last in range(task, tasks):
                self.method.grow(model, last)
        return model.to(memory_format=torch.channels_last)

    def use_torch(self) -> None:
        """Set PyTorch's threads, determinism and memory for this process, so that results repeat bit for bit."""
        threads = self.config.compute.threads
        if not self._uses_torch or torch.get_num_threads() != threads:
            torch.set_num_threads(threads)  # forgets what convolutions have prepared, so not with every step
            self._uses_torch = True
        repeat_bits()
        limit_memory(self.device, self.config.compute.device_megabytes)

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which networks compute as `compute.precision` says; weights and sums stay in float32."""
        lower = self.config.compute.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if lower else nullcontext()

    def check(self) -> None:
        """Build every part once, so that what cannot work is refused before the first step.

        Raises:
            DynammoError: a part cannot be built.
        """
        if self.config.federation.site_names is None:
            self._check_data()
        names = {step.stage.name for step in self.steps}
        for stage in self.config.federation.stages or ():
            if stage not in names:
                raise ConfigError(
                    f"federation.stages: {unknown_name('stage', stage, names)}", accepted=", ".join(sorted(names))
                )
        if self.config.privacy.mechanism != "none":
            _ = self.noise_multiplier
            check_samples_apart(self.build_model(len(self.stream) - 1), self.steps)
        if self.method.uses_memory:
            classes, size = len(self.stream.seen(len(self.stream) - 1)), self.config.data.image_size
            sites, image_bytes = self.config.federation.sites, 3 * size**2
            check_room(self.config.memory, classes=classes, sites=sites, image_bytes=image_bytes)
        _ = self.device
        self.networks.check(len(self.stream))
        for task in self.networks.first_tasks:
            network = self.config.backbone_of(task)
            size = network.image_size or self.config.data.image_size
            require_passage(self.build_model(task).extractor, size, network.name)

    def _check_data(self) -> None:
        """Check what a simulation can know before it starts, and a server without images cannot."""
        if self.protects_images:
            require_patients(self.dataset.train, self.config.privacy.unit)
        remembers = self.config.memory.exemplars and any(step.stage.action is Action.REMEMBER for step in self.steps)
        alone = 1 if remembers else len(self.stream)
        learning = [(step.task, step.stage) for step in self.steps if isinstance(step.stage, LearningStage)]
        fewest = [max(stage.fewest_samples for of, stage in learning if of == task) for task in range(len(self.stream))]
        require_images(self.arrivals, self.dataset, self.partition, alone=alone, fewest=fewest)


@lru_cache(maxsize=4)
def experiment_from_json(text: str) -> Experiment:
    """Return the experiment of a canonical JSON configuration, the same object for the same text in a process.

    Raises:
        ProtocolError: the text is not JSON; ConfigError: it is not a configuration.
    """
    return Experiment(config_from_json(text))
