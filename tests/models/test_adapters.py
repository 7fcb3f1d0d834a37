from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dynammo_core.models.adapters import Adapter, AdapterSet, folded_alphas
from dynammo_core.models.folding import fold_batch_norm
from dynammo_core.models.names import Form

RESNET18 = (64, 64, 128, 256)


def seeded_adapter(channels: int, alpha: float, padding: int = 1) -> Adapter:
    torch.manual_seed(0)
    return Adapter(channels, alpha, padding)


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_alpha_zero_is_the_identity() -> None:
    x = maps(4, 8, 5, 5)
    assert torch.equal(seeded_adapter(8, alpha=0.0)(x), x)


@pytest.mark.parametrize("padding", [0, 1])
def test_output_is_input_plus_alpha_times_two_convolutions_written_out(padding: int) -> None:
    adapter, x = seeded_adapter(6, 0.3, padding), maps(3, 6, 7, 5)
    first, second = adapter.residual[0].weight, adapter.residual[3].weight

    def normalised(y: Tensor) -> Tensor:  # batch norm in training mode with its initial scale 1 and shift 0
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        return (y - mean) / (variance + 1e-5).sqrt()

    hidden = normalised(nn.functional.conv2d(x, first, padding=padding)).relu()
    # A transposed convolution of stride 1 is the convolution with the flipped kernel and swapped channels, and what the
    # one does not pad the other does: 3 - 1 - padding pixels on each side.
    flipped = second.flip(2, 3).transpose(0, 1)
    expected = x + 0.3 * normalised(nn.functional.conv2d(hidden, flipped, padding=2 - padding)).relu()
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-5)


def test_maps_of_a_single_pixel_pass() -> None:
    assert seeded_adapter(4, alpha=0.02)(maps(2, 4, 1, 1)).shape == (2, 4, 1, 1)


def test_alpha_is_learnt_and_starts_where_it_is_told() -> None:
    adapter = seeded_adapter(4, alpha=0.02)
    assert adapter.alpha.item() == pytest.approx(0.02)
    adapter(maps(2, 4, 3, 3)).sum().backward()
    assert adapter.alpha.grad is not None
    assert adapter.alpha.grad.item() != 0


def test_no_counter_and_no_convolution_bias_travels() -> None:
    names = set(seeded_adapter(4, alpha=0.02).state_dict())
    norm = {f"residual.{i}.{n}" for i in (1, 4) for n in ("weight", "bias", "running_mean", "running_var")}
    assert names == {"alpha", "residual.0.weight", "residual.3.weight"} | norm


def test_statistics_follow_the_fixed_momentum() -> None:
    adapter, x = seeded_adapter(4, alpha=0.02), maps(8, 4, 3, 3)
    adapter.train()(x)
    batch_mean = nn.functional.conv2d(x, adapter.residual[0].weight, padding=1).mean((0, 2, 3))
    # torch's momentum 0.1: the new mean is 0.9 * 0 + 0.1 * (mean of the batch).
    torch.testing.assert_close(adapter.residual[1].running_mean, 0.1 * batch_mean.detach())


@pytest.mark.parametrize("plain", [True, False], ids=["plain dict", "state dict"])
def test_strict_load_restores_every_tensor(plain: bool) -> None:
    source, target = AdapterSet(RESNET18, alpha=0.5), AdapterSet(RESNET18, alpha=0.02)
    for module in source:
        module.train()(maps(2, next(module.residual.parameters()).shape[0], 3, 3))
    state = source.state_dict()
    target.load_state_dict({name: tensor.clone() for name, tensor in state.items()} if plain else state, strict=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in target.state_dict().items())


def test_strict_load_still_refuses_what_is_missing_or_surplus() -> None:
    adapters = AdapterSet((4,), alpha=0.02)
    state = dict(adapters.state_dict())
    state["0.residual.1.mean"] = state.pop("0.residual.1.running_mean")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*running_mean.*Unexpected.*residual\.1\.mean"):
        adapters.load_state_dict(state, strict=True)


def test_copies_are_independent() -> None:
    adapters = AdapterSet((4,), alpha=0.02)
    twin = copy.deepcopy(adapters)
    twin[0].train()(maps(2, 4, 3, 3))
    assert torch.equal(adapters[0].residual[1].running_mean, torch.zeros(4))
    assert not torch.equal(twin[0].residual[1].running_mean, torch.zeros(4))


def test_resnet18_set_has_the_size_the_method_states() -> None:
    # Two 3x3 kernels of c^2, two batch norms of 2c and one alpha for each c of 64, 64, 128, 256:
    # 18 * 90,112 + 4 * 512 + 4 = 1,624,068. The paper's 1.63 M adds two biases of c: 1,625,092.
    assert sum(p.numel() for p in AdapterSet(RESNET18, alpha=0.02).parameters()) == 1_624_068


@pytest.mark.parametrize(("padding", "macs"), [(1, 924_844_032), (0, 799_211_520)])
def test_resnet18_set_costs_what_its_convolutions_cost(padding: int, macs: int) -> None:
    # Padded, at 224 pixels: 2 convolutions * 9 * c^2 * side^2, and c * side is 3584 at each of the sides 56, 56, 28 and
    # 14: 4 * 18 * 3584^2 = 924,844,032 MACs; one MAC is two FLOPs. Unpadded, as in the paper, a convolution makes, and
    # its transposed one takes, side - 2 pixels: 18 * (2 * (64 * 54)^2 + (128 * 26)^2 + (256 * 12)^2) = 18 * 44,400,640.
    adapters = AdapterSet(RESNET18, 0.02, padding).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for adapter, channels, side in zip(adapters, RESNET18, (56, 56, 28, 14), strict=True):
            maps = torch.empty(1, channels, side, side, device="meta")
            assert adapter(maps).shape == maps.shape
    assert counter.get_total_flops() == 2 * macs


def test_padding_changes_no_tensor_that_travels() -> None:
    padded, unpadded = (AdapterSet(RESNET18, 0.02, padding).state_dict() for padding in (1, 0))
    assert {name: t.shape for name, t in padded.items()} == {name: t.shape for name, t in unpadded.items()}


def test_without_padding_maps_need_three_pixels_a_side() -> None:
    assert seeded_adapter(4, 0.02, padding=0)(maps(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        seeded_adapter(4, 0.02, padding=0)(maps(2, 4, 2, 2))


def test_group_norm_treats_each_image_by_itself_and_keeps_no_statistics() -> None:
    """Eight groups, or fewer where the channels do not divide by eight."""
    maps = torch.randn(3, 12, 5, 5, generator=torch.Generator().manual_seed(3))
    adapter = Adapter(12, 0.5, norm="group").train()
    together = adapter(maps)
    alone = torch.cat([adapter(one) for one in maps.split(1)])
    torch.testing.assert_close(together, alone)
    assert not list(adapter.buffers())
    assert [module.num_groups for module in adapter.modules() if isinstance(module, nn.GroupNorm)] == [4, 4]
    assert not torch.allclose(Adapter(12, 0.5).train()(maps)[:1], Adapter(12, 0.5).train()(maps[:1]))


# Forms with fewer weights


@pytest.mark.parametrize("padding", [0, 1])
def test_a_thin_form_is_a_full_convolution_with_fewer_weights(padding: int) -> None:
    """1x1 and 3x3 in a row are one 3x3 kernel: the product of both over the channels between."""
    x = maps(2, 16, 5, 5)
    for form, weights in (("low_rank", 2 * 16 * 2 + 18 * 2**2), ("depthwise", 18 * 16 + 2 * 16**2)):
        adapter = Adapter(16, 0.5, padding, form=form).eval()
        kernels = [module.weight for module in adapter.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
        assert sum(kernel.numel() for kernel in kernels) == weights
        first, second = adapter.residual[0]
        whole = (
            torch.einsum("bchw,ci->bihw", second.weight, first.weight[:, :, 0, 0])
            if form == "low_rank"
            else second.weight * first.weight[None, :, 0]
        )
        expected = nn.functional.conv2d(x, whole, padding=padding)
        torch.testing.assert_close(adapter.residual[0](x), expected, rtol=1e-4, atol=1e-5)
        assert adapter(x).shape == x.shape


@pytest.mark.parametrize("form", ["low_rank", "depthwise"])
def test_a_thin_form_folds_its_alpha_and_its_batch_norm(form: Form) -> None:
    adapters, x = trained(-0.7, form=form), maps(3, 8, 4, 4)
    before = through(adapters, x).detach()
    adapters.load_state_dict(folded_alphas(adapters.state_dict()))
    network = nn.Sequential(*adapters)
    assert fold_batch_norm(network, x) == 4
    torch.testing.assert_close(network(x).detach(), before, rtol=1e-4, atol=1e-5)


# Folding alphas


def trained(alpha: float, norm: str = "batch", form: Form = "full") -> AdapterSet:
    """Two adapters whose norms have learnt something and seen something."""
    torch.manual_seed(0)
    adapters = AdapterSet((8, 8), alpha=alpha, norm=norm, form=form)
    for adapter in adapters:
        adapter(maps(6, 8, 4, 4))
        for norm_layer in (adapter.residual[1], adapter.residual[4]):
            nn.init.normal_(norm_layer.weight)
            nn.init.normal_(norm_layer.bias)
    return adapters.eval()


def through(adapters: AdapterSet, x: Tensor) -> Tensor:
    for adapter in adapters:
        x = adapter(x)
    return x


@pytest.mark.parametrize("norm", ["batch", "group"])
@given(alpha=st.floats(-3, 3, width=32) | st.sampled_from([0.0, -0.0]))
def test_folding_alphas_changes_nothing_that_is_computed(norm: str, alpha: float) -> None:
    adapters, x = trained(alpha, norm), maps(3, 8, 4, 4)
    before = through(adapters, x).detach()
    state = adapters.state_dict()
    folded = folded_alphas(state)
    assert folded.keys() == state.keys()
    assert folded["1.alpha"].item() == (-1 if alpha < 0 else 1)
    adapters.load_state_dict(folded)
    torch.testing.assert_close(through(adapters, x).detach(), before, rtol=1e-4, atol=1e-5)


def test_folding_twice_is_folding_once_and_leaves_the_rest_alone() -> None:
    state = trained(-0.3).state_dict()
    once = folded_alphas(state)
    assert all(torch.equal(tensor, once[name]) for name, tensor in folded_alphas(once).items())
    changed = {name for name in state if not torch.equal(state[name], once[name])}
    assert changed == {f"{i}.{part}" for i in (0, 1) for part in ("alpha", "residual.4.weight", "residual.4.bias")}
