from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dynammo_core.models.heads import OTHERS, CosineHead, LinearHead, NearestMeanHead, head_rows


def labels(*values: int) -> Tensor:
    return torch.tensor(values)


def test_targets_are_rows_not_classes() -> None:
    assert LinearHead(2, (7, 3, 5)).targets(labels(5, 7, 7, 3)).tolist() == [2, 0, 0, 1]


@pytest.mark.parametrize("rows", [(4, 9, OTHERS), (OTHERS, 4, 9)])
def test_labels_without_a_row_of_their_own_go_to_others(rows: tuple[int, ...]) -> None:
    targets = LinearHead(2, rows).targets(labels(9, 0, 4, 123)).tolist()
    assert [rows[target] for target in targets] == [9, OTHERS, 4, OTHERS]


@given(
    classes=st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True),
    asked=st.lists(st.integers(0, 50), min_size=1, max_size=20),
)
def test_each_target_is_the_row_of_its_label(classes: list[int], asked: list[int]) -> None:
    rows = (*classes, OTHERS)
    targets = LinearHead(2, rows).targets(labels(*asked))
    assert targets.dtype == torch.int64
    assert [rows[t] for t in targets.tolist()] == [label if label in classes else OTHERS for label in asked]


def test_a_label_that_no_row_stands_for_is_named() -> None:
    with pytest.raises(ValueError, match=r"label 8 has no row in a head with the classes \(7, 3\)"):
        LinearHead(2, (7, 3)).targets(labels(3, 8, 9))


def test_an_extended_head_says_the_same_of_the_classes_it_had() -> None:
    head = LinearHead(4, (7, 3))
    grown, features = head.extended((5, 1, 0)), torch.randn(6, 4)
    assert grown.rows == (7, 3, 5, 1, 0)
    assert torch.equal(grown.weight[:2], head.weight)
    assert torch.equal(grown.bias[:2], head.bias)
    torch.testing.assert_close(grown(features)[:, :2], head(features))
    assert grown.weight[2:].unique(dim=0).shape == (3, 4)  # new rows start at random


def test_an_extended_head_is_a_trainable_one_of_its_own() -> None:
    head = LinearHead(4, (7, 3))
    kept = head.weight.clone()
    grown = head.extended((5,))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in grown.parameters())
    nn.init.zeros_(grown.weight)
    assert torch.equal(head.weight, kept)


def test_rows_of_every_tensor_of_every_head_by_name() -> None:
    model = nn.ModuleDict({"heads": nn.ModuleDict({"a": LinearHead(2, (1, OTHERS))}), "other": nn.Linear(2, 2)})
    assert head_rows(model) == {"heads.a.weight": (1, OTHERS), "heads.a.bias": (1, OTHERS)}
    assert head_rows(model).keys() <= model.state_dict().keys()


# Wider features


@given(old=st.integers(1, 4), new=st.integers(0, 3), width=st.integers(1, 5), added=st.integers(0, 4))
def test_added_feature_columns_stand_behind_what_was_learnt(old: int, new: int, width: int, added: int) -> None:
    head = LinearHead(width, tuple(range(old)))
    grown = head.extended(tuple(range(old, old + new)), added)
    assert grown.weight.shape == (old + new, width + added)
    assert torch.equal(grown.weight[:old, :width], head.weight)
    assert torch.equal(grown.bias[:old], head.bias)
    # A bound of 1 / sqrt(D) for every entry of a new linear layer of D features.
    assert grown.weight[:, width:].abs().amax().item() <= (width + added) ** -0.5 if added else True
    assert grown.weight[:, width:].count_nonzero() == (old + new) * added


# Cosines


def cosine(vectors: list[list[float]], *, proxies: int = 1, scale: float = 1.0) -> CosineHead:
    head = CosineHead(len(vectors[0]), tuple(range(len(vectors) // proxies)), proxies=proxies, scale=scale)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(vectors))
    return head


def test_one_proxy_a_class_is_the_scaled_cosine_by_hand() -> None:
    # (3, 4) against (2, 0), (0, 7), (-4, 3): 3/5, 4/5 and (-12 + 12) / 25 = 0, each times 10.
    head = cosine([[2, 0], [0, 7], [-4, 3]], scale=10.0)
    torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, 8.0, 0.0]]))
    torch.testing.assert_close(head.similarities(torch.tensor([[30.0, 40.0]])), torch.tensor([[0.6, 0.8, 0.0]]))


def test_several_proxies_are_weighted_by_their_own_softmax_by_hand() -> None:
    # The feature (1, 0). Class 0 has the cosines 1 and -1: weights e and 1/e over their sum, so tanh(1). Class 1 has 0
    # and 0.6: weights 1 and e^0.6. A weight shared by the rows of both classes would say something else.
    head = cosine([[1, 0], [-1, 0], [0, 2], [3, 4]], proxies=2, scale=2.0)
    logits = head(torch.tensor([[5.0, 0.0]]))[0].tolist()
    assert logits == pytest.approx([2 * math.tanh(1), 2 * 0.6 * math.exp(0.6) / (1 + math.exp(0.6))])


@pytest.mark.parametrize("proxies", [1, 3])
def test_an_extended_cosine_head_keeps_old_rows_and_scale(proxies: int) -> None:
    head = CosineHead(4, (7, 3), proxies=proxies, scale=5.0)
    with torch.no_grad():
        head.scale.fill_(12.5)  # as learnt
    grown, features = head.extended((5,)), torch.randn(6, 4)
    assert grown.rows == (7, 3, 5)
    assert grown.weight.shape == (3 * proxies, 4)
    assert torch.equal(grown.weight[: 2 * proxies], head.weight)
    assert grown.scale.item() == 12.5
    torch.testing.assert_close(grown(features)[:, :2], head(features))
    assert grown.weight.unique(dim=0).shape == (3 * proxies, 4)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in grown.parameters())


def test_the_scale_is_learnt() -> None:
    head = cosine([[1, 0], [0, 1]], scale=3.0)
    head(torch.tensor([[3.0, 4.0]])).sum().backward()
    assert head.scale.grad is not None
    assert head.scale.grad.item() == pytest.approx(0.6 + 0.8)


# Class means


def test_the_nearest_mean_by_hand() -> None:
    # Squared distances of unit vectors are 2 - 2 cos: of (3, 4) to (1, 0), (0, 1), (-4, 3): 0.8, 0.4 and 2.
    head = NearestMeanHead(2, (4, 8, 9))
    head.weight.copy_(torch.tensor([[0.5, 0], [0, 3], [-4, 3]]))
    torch.testing.assert_close(head(torch.tensor([[6.0, 8.0]])), torch.tensor([[-0.8, -0.4, -2.0]]))


def test_class_without_exemplars_is_as_far_as_unit_vectors_can_be() -> None:
    # Two opposite unit vectors are 2 apart, whose square is 4. The mean of zeros would be at a distance of 1, nearer
    # than the class whose mean points the other way.
    head = NearestMeanHead(2, (4, 8, 9))
    head.weight.copy_(torch.tensor([[0.0, 0.0], [-0.5, 0.0], [0.0, 0.7]]))
    logits = head(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(logits, torch.tensor([[-4.0, -4.0, -2.0], [-4.0, -2.0, 0.0]]))


def test_means_are_not_trained_but_belong_to_the_state() -> None:
    head = NearestMeanHead(2, (4, 8))
    assert not list(head.parameters())
    assert list(head.state_dict()) == ["weight"]
    with pytest.raises(NotImplementedError, match="NearestMeanHead cannot be extended"):
        head.extended((9,))


def test_rows_of_proxies_and_of_means() -> None:
    model = nn.ModuleDict({"a": CosineHead(2, (5, 3), proxies=3), "b": NearestMeanHead(2, (7, 3, 5))})
    assert head_rows(model) == {"a.weight": (5, 5, 5, 3, 3, 3), "b.weight": (7, 3, 5)}
    for name, rows in head_rows(model).items():
        assert len(rows) == len(model.state_dict()[name])  # the scale of the cosines has no rows
