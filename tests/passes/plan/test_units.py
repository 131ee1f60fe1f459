"""Tied nodes are one unit, of some kind; cuts inside a unit move behind it."""

import pytest
import torch
import torch.nn.functional as F
from kit.partition_programs import (
    X,
    assert_parts_equal_the_whole,
    captured,
    chain,
    linear,
    model_of,
    nodes_of,
    parted,
    where,
)
from torch import nn

from dnigraph.passes.errors import CutError
from dnigraph.passes.plan.partition import partition


def test_a_cut_before_an_in_place_relu_moves_past_it():
    model = chain(a=nn.Conv2d(1, 2, 1), b=nn.ReLU(inplace=True), c=nn.Conv2d(2, 1, 1))

    whole, plan = parted(model, ["a"], torch.randn(2, 1, 3, 3))

    assert nodes_of(whole, plan) == [{"a", "b"}, {"c"}]
    assert whole.labelled(plan.cuts) == (("b", "c"),)
    assert plan.notes == ("cut after 'a' moved past 'b', which changes its value in place",)
    assert plan.crossings[0].asked
    assert_parts_equal_the_whole(whole, plan)


def test_a_cut_that_cannot_move_past_an_in_place_write_is_an_error_that_says_so():
    model = chain(a=linear(), b=linear(), c=nn.ReLU(inplace=True))
    whole = captured(model, X)

    with pytest.raises(CutError) as raised:
        partition(whole.graph, whole.edges(("b", "c")))

    assert raised.value.misfits == (
        "cut after 'b': it would have to move past 'c', which changes its value in place, and nothing follows that; "
        "cut before 'b'",
    )


def test_a_mask_that_is_built_in_place_is_still_made_again_where_it_is_needed():
    def forward(m, x, y):
        mask = torch.zeros(x.shape[0], 4, dtype=torch.bool)
        mask[:, 0] = True
        return m.c(m.a(x).masked_fill(mask, 0) + m.b(y).masked_fill(mask, 0))

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["masked_fill", "masked_fill@2"], X, X)

    assert where(whole, plan)["zeros"] == (0, 1)  # and so the towers stay independent
    assert_parts_equal_the_whole(whole, plan)


def test_a_mask_that_writes_an_input_is_made_once():
    def forward(m, x, y, mask):
        wide = mask.mul_(2) > 1
        return m.c(m.a(x) * wide + m.b(y) * wide)

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["mul", "mul@2"], X, X, X)

    assert len(where(whole, plan)["mul_"]) == 1


class SpectralNorm(nn.Module):
    """A layer whose weight depends on a buffer that it changes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("direction", torch.randn(4))

    def forward(self, x):
        with torch.no_grad():
            self.direction.copy_(F.normalize(self.weight @ self.direction, dim=0))
        return F.linear(x, self.weight / (self.direction @ self.weight @ self.direction))


def test_a_weight_that_changes_a_buffer_is_made_in_the_part_that_uses_it():
    model = chain(a=linear(), b=linear(), c=SpectralNorm())

    whole, plan = parted(model, ["a", "b"], torch.randn(2, 4))

    assert nodes_of(whole, plan)[:2] == [{"a"}, {"b"}]
    assert [c.name for c in plan.crossings] == ["a", "b"]
    assert_parts_equal_the_whole(whole, plan)
