"""What a prediction costs as tasks come in: MACs, parameters and latency, of one pass and of T passes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynammo_core.models.adapters import AdapterSet
from dynammo_core.models.backbones import Backbone, build_backbone
from dynammo_core.models.heads import OTHERS, LinearHead
from dynammo_core.seeding import seeded_initialisation
from dynammo_core.settings import BackboneSettings

ALPHA = 0.02
"""Start value of the adapters' scale (DynaMMo, arXiv 2404.14099); what a pass costs does not depend on it."""


class MergedModel(nn.Module):
    """What is deployed after T tasks: one backbone, one merged adapter set, T small heads, one pass."""

    def __init__(self, backbone: Backbone, tasks: int, classes_per_task: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapters = AdapterSet(backbone.channels, ALPHA)
        self.heads = _heads(backbone, tasks, classes_per_task)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all heads, Tensor[B, T, classes + 1]."""
        features = self.backbone(images, self.adapters)
        return torch.stack([head(features) for head in self.heads], dim=1)


class TPassModel(nn.Module):
    """The unmerged model of ACL (arXiv 2304.09042): an adapter set for each task, and so a pass for each task.

    The passes share what lies before the first adapter.
    """

    def __init__(self, backbone: Backbone, tasks: int, classes_per_task: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter_sets = nn.ModuleList(AdapterSet(backbone.channels, ALPHA) for _ in range(tasks))
        self.heads = _heads(backbone, tasks, classes_per_task)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all heads, each on the features of its own task's pass, Tensor[B, T, classes + 1]."""
        maps = self.backbone.prefix(images)
        features = [self.backbone.from_prefix(maps, own.children()) for own in self.adapter_sets]
        return torch.stack([head(own) for own, head in zip(features, self.heads, strict=True)], dim=1)


def multiply_accumulates(module: nn.Module, image_size: int) -> int:
    """MACs of one image Tensor[1, 3, S, S], as half of the FLOPs that PyTorch's own counter sees."""
    module.eval()
    device = next(module.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(torch.zeros(1, 3, image_size, image_size, device=device))
    return counter.get_total_flops() // 2


def parameter_count(module: nn.Module) -> int:
    """Parameters, without batch-norm statistics."""
    return sum(parameter.numel() for parameter in module.parameters())


def cost_table(
    settings: BackboneSettings,
    *,
    seed: int,
    image_size: int,
    classes_per_task: int,
    tasks: Sequence[int],
    repeats: int = 30,
) -> list[dict[str, object]]:
    """Rows {model, tasks, macs, parameters, latency_ms}: `merged`, `t_pass` and the bare `backbone` for each T.

    Latency is the best of `repeats` single images, taken in turns over all rows, so that a disturbance of the machine
    meets all of them alike.
    """
    backbone = build_backbone(settings, seed)
    rows: list[tuple[str, int, nn.Module]] = []
    for count in tasks:
        with seeded_initialisation(seed, "cost", count):
            rows.append(("merged", count, MergedModel(backbone, count, classes_per_task)))
            rows.append(("t_pass", count, TPassModel(backbone, count, classes_per_task)))
            rows.append(("backbone", count, backbone))
    latencies = _latencies([module for _, _, module in rows], image_size, repeats)
    return [
        {
            "model": name,
            "tasks": count,
            "macs": multiply_accumulates(module, image_size),
            "parameters": parameter_count(module),
            "latency_ms": round(latency * 1000, 3),
        }
        for (name, count, module), latency in zip(rows, latencies, strict=True)
    ]


@torch.no_grad()
def _latencies(modules: Sequence[nn.Module], image_size: int, repeats: int) -> list[float]:
    """Best seconds of each module on one image."""
    image = torch.zeros(1, 3, image_size, image_size)
    best = [float("inf")] * len(modules)
    for repeat in range(repeats + 3):
        for index, module in enumerate(modules):
            module.eval()
            started = time.perf_counter()
            module(image)
            elapsed = time.perf_counter() - started
            if repeat >= 3:
                best[index] = min(best[index], elapsed)
    return best


def _heads(backbone: Backbone, tasks: int, classes: int) -> nn.ModuleList:
    rows = [(*range(task * classes, (task + 1) * classes), OTHERS) for task in range(tasks)]
    return nn.ModuleList(LinearHead(backbone.feature_dim, own) for own in rows)
