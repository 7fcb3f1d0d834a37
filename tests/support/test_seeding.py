from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dynammo_core.support.seeding import derive_seed, seeded_generator, seeded_initialisation

parts = st.lists(st.integers(0, 10**6) | st.text("abcdef", min_size=1, max_size=8), min_size=1, max_size=5)


def test_a_seed_is_the_first_63_bits_of_a_sha256_on_every_machine() -> None:
    # printf 1/adapt/0 | sha256sum | cut -c-16
    assert derive_seed(1, "adapt", 0) == 0x42F15721E68D1C9D >> 1


@given(parts=parts)
def test_a_seed_fits_torch_and_numpy(parts: list[int | str]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert torch.Generator().manual_seed(seed).initial_seed() == seed


@given(parts=parts, other=st.integers(0, 10**6), data=st.data())
def test_every_part_counts(parts: list[int | str], other: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(parts) - 1))
    changed = [*parts[:at], f"{parts[at]}{other}", *parts[at + 1 :]]
    assert derive_seed(*changed) != derive_seed(*parts)
    assert derive_seed(*parts, other) != derive_seed(*parts)
    if [str(p) for p in parts] != [str(p) for p in reversed(parts)]:
        assert derive_seed(*reversed(parts)) != derive_seed(*parts)


def test_generators_repeat() -> None:
    draws = [torch.rand(3, generator=seeded_generator(5, "a")).tolist() for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] != torch.rand(3, generator=seeded_generator(5, "b")).tolist()


def test_initial_weights_depend_on_the_seed_alone_and_the_global_generator_is_untouched() -> None:
    weights = []
    for seed in (3, 3, 4):
        torch.rand(seed)
        state = torch.get_rng_state()
        with seeded_initialisation(seed, "grow"):
            weights.append(nn.Linear(4, 4).weight)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_error_inside_leaves_the_global_generator_as_it_was() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded_initialisation(1):
        torch.rand(1)
        _ = 1 / 0
    assert torch.equal(torch.get_rng_state(), state)
