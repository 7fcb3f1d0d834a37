"""Which samples of a class to keep as exemplars: each operator ranks them, best first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

Selection = Callable[[Tensor, int, torch.Generator], Tensor]


def herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rank samples so that their running mean stays closest to the class mean (iCaRL, arXiv 1611.07725, algorithm 4).

    Args:
        features: Tensor[N, D] of one class; normalised to unit length here, as in iCaRL.
        count: exemplars wanted; at most N are ranked.
        generator: not used; every operator has the same signature.

    Returns:
        Tensor[min(count, N)] int64: indices, best first.
    """
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    target = unit.mean(dim=0)
    total = torch.zeros_like(target)
    free = torch.ones(len(unit), dtype=torch.bool)
    chosen: list[int] = []
    for step in range(1, min(count, len(unit)) + 1):
        distances = (target - (total + unit) / step).norm(dim=1)
        index = int(distances.masked_fill(~free, torch.inf).argmin())
        chosen.append(index)
        total += unit[index]
        free[index] = False
    return torch.tensor(chosen, dtype=torch.int64)


def closest_to_mean(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rank the samples nearest to the class mean of unit-length features, nearest first."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    distances = (unit - unit.mean(dim=0)).norm(dim=1)
    return torch.argsort(distances, stable=True)[:count]


def random_choice(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose uniformly, without replacement."""
    return torch.randperm(len(features), generator=generator)[:count]


SELECTIONS: Mapping[str, Selection] = MappingProxyType(
    {"herding": herding, "random": random_choice, "closest_to_mean": closest_to_mean}
)


def choose(
    selection: str, features: Tensor, patients: Sequence[str], count: int, *, fewest_patients: int, seed: int
) -> Tensor:
    """Choose the exemplars of a class so that the first of them show different patients.

    However few exemplars stay later, no fewer patients stand behind them than `fewest_patients`, if there are so many.

    Args:
        selection: name of the operator that ranks.
        features: Tensor[N, D] of one class.
        patients: N patients that the images show.
        count: exemplars wanted.
        fewest_patients: number of different patients that come first.
        seed: random seed of the class.

    Returns:
        Tensor[min(count, N)] int64: indices, best first.
    """
    lead, ranked = min(fewest_patients, count), count
    while True:
        order = SELECTIONS[selection](features, ranked, torch.Generator().manual_seed(seed))
        if ranked >= len(features) or len({patients[index] for index in order.tolist()}) >= lead:
            return patients_first(order, patients, lead)[:count]
        ranked *= 2


def patients_first(order: Tensor, patients: Sequence[str], lead: int) -> Tensor:
    """Move the best image of each of the `lead` best patients to the front of a ranking, Tensor[N] int64."""
    if lead <= 1:
        return order
    best: dict[str, int] = {}
    for place, index in enumerate(order.tolist()):
        best.setdefault(patients[index], place)
    front = list(best.values())[:lead]
    rest = sorted(set(range(len(order))) - set(front))
    return order[torch.tensor(front + rest, dtype=torch.int64)]
