"""The inputs of a call: what they are called, and what else a model is tried on."""

import pytest
import torch
from torch import nn

from dnigraph.passes.sandbox.example import input_names, one_more_row, other_inputs, other_sizes, varied

X = torch.arange(1.0, 13.0).reshape(3, 4)


def taking(forward):
    model = nn.Module()
    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("forward", "args", "kwargs", "names"),
    [
        (lambda x, y: 0, (1, 2), {}, ["x", "y"]),
        (lambda x, y: 0, (1,), {"y": 2}, ["x", "y"]),
        (lambda x, /, y=1: 0, (1,), {}, ["x"]),
        (lambda x, y: 0, ([1, 2], {"a": 3}), {}, ["x_0", "x_1", "y"]),
        (lambda x, *rest: 0, (1, 2, 3), {}, ["x", "rest_0", "rest_1"]),
        (lambda *rest: 0, (1,), {}, ["rest_0"]),
        (lambda x, **more: 0, (1,), {"scale": 2, "pair": (3, 4)}, ["x", "scale", "pair_0", "pair_1"]),
        (lambda x, y: 0, ([], 1), {}, ["y"]),
        (lambda x, x_0: 0, ([1, 2], 3), {}, ["x_0", "x_1", "x_0_"]),
        (lambda x, x_0, x_0_: 0, ([1, 2], 3, 4), {}, ["x_0", "x_1", "x_0__", "x_0_"]),
    ],
)
def test_each_leaf_is_called_as_its_argument_and_numbered_where_there_are_several(forward, args, kwargs, names):
    assert input_names(taking(forward), args, kwargs) == names


def test_one_row_more_is_the_first_again_behind_rows_that_moved_on():
    longer, same, number = one_more_row([X, torch.ones(2), 7])

    assert torch.equal(longer, torch.cat([X[2:], X[:2], X[:1]]) * 0.875)
    assert torch.equal(same, torch.ones(2)) and number == 7


def test_without_a_batch_there_is_no_row_more():
    assert one_more_row([torch.tensor(1.0), 3]) is None
    assert one_more_row([torch.ones(0, 2), X]) is None
    assert len(one_more_row([torch.tensor(1.0), torch.ones(1)])[1]) == 2


def test_other_values_are_rolled_rows_and_numbers_nearer_to_zero_but_for_masks_and_integers():
    mask, whole, scalar = torch.tensor([1.0, 0.0]), torch.tensor([1, 2]), torch.tensor(2.0)

    changed = varied([X, mask, whole, scalar, "text"])

    assert torch.equal(changed[0], X.roll(1, 0) * 0.875)
    assert torch.equal(changed[1], torch.tensor([0.0, 1.0])) and torch.equal(changed[2], torch.tensor([2, 1]))
    assert changed[3] == 1.75 and changed[4] == "text"


def test_a_tensor_that_is_given_twice_stays_one_and_asks_for_gradients_as_before():
    x = X.clone().requires_grad_()

    one, again, other = varied([x, x, X])

    assert one is again and one.requires_grad and one.is_leaf and not other.requires_grad


def test_sparse_tensors_stay_as_they_are():
    sparse = X.to_sparse()

    changed = varied([sparse, X])

    assert changed[0] is sparse and changed[1] is not X


def test_other_inputs_have_a_row_more_where_there_is_a_batch_and_other_values_in_any_case():
    assert list(other_inputs([X])) == ["one more row", "other values"]
    assert [len(leaves[0]) for leaves in other_inputs([X]).values()] == [4, 3]
    assert list(other_inputs([torch.tensor(1.0)])) == ["other values"]


def test_each_size_behind_the_batch_is_tried_one_longer_once_in_all_inputs_that_have_it_there():
    leaves = [torch.ones(2, 3, 5), torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 0), 7]

    shapes = [[tuple(leaf.shape) for leaf in tried if torch.is_tensor(leaf)] for tried in other_sizes(leaves)]

    assert shapes == [
        [(2, 4, 5), (2, 4), (2, 4), (2, 0)],
        [(2, 3, 6), (2, 3), (2, 4), (2, 0)],
        [(2, 3, 5), (2, 3), (2, 5), (2, 0)],
    ]


def test_no_more_than_four_sizes_are_tried():
    assert len(other_sizes([torch.ones(1, 2, 3, 4, 5)])) == 4
    assert len(other_sizes([torch.ones(1, 2, 3, 4, 5, 6)])) == 4


def test_what_is_longer_begins_with_what_it_was_and_ends_with_its_first():
    (tried,) = other_sizes([X])

    assert torch.equal(tried[0], torch.cat([X, X[:, :1]], 1) * 0.875)
