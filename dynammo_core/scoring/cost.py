"""The cost of a prediction as tasks come in: MACs, parameters and latency of each method's deployed model."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynammo_core.configuration.settings import BackboneSettings, MethodSettings, TaskSettings
from dynammo_core.data.task_stream import TaskStream
from dynammo_core.methods import METHODS
from dynammo_core.methods.adapters import ADAPTERS
from dynammo_core.methods.base import Method
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.folding import fold_low_rank
from dynammo_core.models.incremental_model import IncrementalModel
from dynammo_core.models.names import Form, Kind, matching, travelling_names
from dynammo_core.support.errors import ConfigError
from dynammo_core.support.seeding import seeded_initialisation

COMPARED = ("dynammo", "acl", "dynamic_er", "fine_tune")
"""Methods that grow differently: not at all, by adapters and passes, by whole networks; and a bare network."""


ADAPTERS_COMPARED: Mapping[str, dict[str, object]] = MappingProxyType(
    {
        "none": {"adapters": False},
        **{form: {"adapter": "convolution", "adapter_form": form} for form in get_args(Form)},
        **{kind: {"adapter": kind} for kind in get_args(Kind)},
    }
)
"""Settings of the method `dynammo` by the name of its adapters."""


class Deployed(nn.Module):
    """A model as it is deployed: turns images into answers by the method's own prediction."""

    def __init__(self, method: Method[Any], model: IncrementalModel) -> None:
        super().__init__()
        self.method = method
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Predict labels Tensor[B] of normalised images Tensor[B, 3, S, S]."""
        return self.method.decision.predict(self.model, self.model.extractor(images)).labels

    def parameter_count(self) -> int:
        """Count the parameters that prediction needs, without batch-norm statistics."""
        changing = set(travelling_names(self.model))
        deployed = set(matching(changing, self.method.deployed))
        parameters = self.model.named_parameters()
        return sum(parameter.numel() for name, parameter in parameters if name not in changing or name in deployed)


def classes_in_first(settings: TaskSettings) -> int:
    """Return the number of classes of the first task; raises ConfigError where the sizes give none."""
    if isinstance(settings.sizes, str):
        what = f"tasks.sizes: {settings.sizes} gives no number of classes to count costs for"
        raise ConfigError(what, accepted="a number, such as --set tasks.sizes=2")
    return settings.sizes if isinstance(settings.sizes, int) else settings.sizes[0]


def deployed_after(tasks: int, method: MethodSettings, backbone: Backbone, classes_per_task: int) -> Deployed:
    """Build a method's untrained model after `tasks` tasks of `classes_per_task` classes each, LoRA folded."""
    deployed = trained_after(tasks, method, backbone, classes_per_task)
    fold_low_rank(deployed.model.extractor)
    return deployed


def trained_after(tasks: int, method: MethodSettings, backbone: Backbone, classes_per_task: int) -> Deployed:
    """Build the same model as it is trained: LoRA stands beside the weights that it is folded into afterwards."""
    stream = TaskStream(
        tuple(tuple(range(task * classes_per_task, (task + 1) * classes_per_task)) for task in range(tasks))
    )
    grown = METHODS[method.name](method, stream)
    network = copy.deepcopy(backbone)
    model = IncrementalModel(network.freeze() if grown.freezes_backbone else network)
    for task in range(tasks):
        grown.grow(model, task)
    return Deployed(grown, model.eval())


def method_settings(names: Sequence[str], settings: MethodSettings) -> list[MethodSettings]:
    """Return the settings of each named method: values of `given` for parameters that both have, else its defaults.

    Raises:
        ConfigError: a method is unknown.
    """
    shared = settings.model_dump()
    return [
        params.model_validate({key: shared[key] for key in params.model_fields if key in shared} | {"name": name})
        for name, params in ((name, METHODS.find(name, "--methods").Params) for name in names)
    ]


@torch.no_grad()
def multiply_accumulates(module: nn.Module, image_size: int) -> int:
    """Count the MACs of one image Tensor[1, 3, S, S], as half of the FLOPs that PyTorch's own counter sees."""
    module.eval()
    device = next(module.parameters()).device
    counter = FlopCounterMode(display=False)
    with counter:
        module(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


def cost_table(
    settings: BackboneSettings,
    methods: Sequence[MethodSettings],
    *,
    seed: int,
    image_size: int,
    classes_per_task: int,
    tasks: Sequence[int],
    repeats: int = 30,
) -> list[dict[str, object]]:
    """Measure rows {method, tasks, macs, parameters, latency_ms}, one for each number of tasks and each method.

    Latency is the best of `repeats` single images, taken in turns over all rows, so that a disturbance of the machine
    affects all of them alike.
    """
    backbone = build_backbone(settings, seed, image_size)
    with seeded_initialisation(seed, "cost"):
        models = {
            (method.name, count): deployed_after(count, method, backbone, classes_per_task)
            for count in tasks
            for method in methods
        }
    latencies = _latencies(list(models.values()), image_size, repeats)
    return [
        {**_row(name, count, model, image_size), "latency_ms": round(latency * 1000, 3)}
        for ((name, count), model), latency in zip(models.items(), latencies, strict=True)
    ]


def macs_table(
    *,
    backbones: Sequence[str] = ("resnet18", "mobilenet_v2", "efficientnet_b0"),
    methods: Sequence[MethodSettings],
    tasks: Sequence[int] = (1, 5, 10),
    image_size: int = 224,
    classes_per_task: int = 10,
) -> list[dict[str, object]]:
    """Compute rows {backbone, method, tasks, macs, parameters} from shapes alone, without any pixel or weight."""
    rows = []
    for name in backbones:
        with torch.device("meta"):
            backbone = build_backbone(BackboneSettings(name=name, weights="random"), 0, image_size)
            rows += [
                {
                    "backbone": name,
                    **_row(method.name, count, deployed_after(count, method, backbone, classes_per_task), image_size),
                }
                for method in methods
                for count in tasks
            ]
    return rows


def adapter_costs(names: Sequence[str], image_size: int) -> list[dict[str, object]]:
    """Count what each form of adapters costs in each network, from shapes alone, beside the bare network.

    Returns:
        Rows {backbone, adapters, parameters, gmac, adapter_parameters, round_mb, sums_mb}: those of the whole network
        and of one prediction; those of an adapter set, and megabytes of one that travels one way in a round; and those
        of the Gram matrix that a site sends in a task for `streaming_ridge` with `multi_scale`, at most.
    """
    with torch.device("meta"):
        return [row for name in names for row in _adapter_costs(name, image_size)]


def _adapter_costs(name: str, image_size: int) -> Iterator[dict[str, object]]:
    backbone = build_backbone(BackboneSettings(name=name, weights="random"), 0, image_size)
    features = sum(backbone.map_channels) + backbone.feature_dim
    method = METHODS["dynammo"]
    for label, settings in ADAPTERS_COMPARED.items():
        params = method.Params.model_validate({"name": method.name, **settings})
        try:
            model = trained_after(1, params, backbone, 1)
        except ConfigError:  # these adapters have no place in this network
            continue
        tensors = model.model.state_dict()
        own = matching(tensors, (ADAPTERS,))
        fold_low_rank(model.model.extractor)  # a prediction's cost is that of the deployed model
        trained = sum(tensors[one].numel() for one in own)
        yield {
            "backbone": name,
            "adapters": label,
            "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
            "gmac": f"{multiply_accumulates(model, image_size) / 1e9:.3g}",
            "adapter_parameters": trained,
            "round_mb": f"{trained * 4 / 1e6:.3g}",
            "sums_mb": f"{features * (features + 1) / 2 * 8 / 1e6:.3g}" if not own else "",
        }


def _row(name: str, tasks: int, model: Deployed, image_size: int) -> dict[str, object]:
    return {
        "method": name,
        "tasks": tasks,
        "macs": multiply_accumulates(model, image_size),
        "parameters": model.parameter_count(),
    }


@torch.no_grad()
def _latencies(modules: Sequence[nn.Module], image_size: int, repeats: int) -> list[float]:
    """Return the best time of each module on one image, in seconds."""
    image = torch.zeros(1, 3, image_size, image_size)
    best = [float("inf")] * len(modules)
    for repeat in range(repeats + 3):
        for index, module in enumerate(modules):
            started = time.perf_counter()
            module(image)
            elapsed = time.perf_counter() - started
            if repeat >= 3:
                best[index] = min(best[index], elapsed)
    return best
