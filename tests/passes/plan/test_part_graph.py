"""Levels, parts, and the order in which they run."""

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


def test_a_chain_is_cut_into_its_links():
    model = chain(a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"c"}]
    assert [part.level for part in plan.parts] == [0, 1, 2]
    assert [(c.name, c.producer, c.consumers, c.asked) for c in plan.crossings] == [
        ("a", "part_0", ("part_1",), True),
        ("b", "part_1", ("part_2",), True),
    ]
    assert plan.notes == ()


def test_without_cuts_there_is_one_part():
    model = model_of(lambda m, x, y: (m.a(x), m.b(y)), a=linear(), b=linear())  # two towers that never meet

    whole, plan = parted(model, [], X, X)

    assert nodes_of(whole, plan) == [{"a", "b"}]


def test_a_skip_connection_over_one_cut_crosses_once_with_all_its_consumers():
    model = model_of(lambda m, x: m.b(h := m.a(x)) + h, a=linear(), b=linear())

    whole, plan = parted(model, ["a"], X)

    assert nodes_of(whole, plan) == [{"a"}, {"b", "add"}]
    assert [(whole.label(c.node), c.consumers) for c in plan.crossings] == [("a", ("part_1",))]
    assert_parts_equal_the_whole(whole, plan)


def test_a_skip_connection_over_several_cuts_goes_straight_to_each_consumer():
    model = model_of(lambda m, x: m.c(m.b(h := m.a(x))) + h, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, [("a", "b"), ("b", "c")], X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"c", "add"}]
    assert [(whole.label(c.node), c.consumers) for c in plan.crossings] == [
        ("a", ("part_1", "part_2")),
        ("b", ("part_2",)),
    ]


def test_a_size_of_one_branch_ties_the_branch_that_uses_it():
    def forward(m, x):
        h = m.a(x)
        short = m.b(h)[1:]
        return short, m.c(h)[: short.shape[0]] * 2

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    _, plan = parted(model, ["a"], torch.ones(3, 4))

    assert len(plan.parts) == 2  # nobody asked to cut between b and c


def test_a_u_net_sends_each_skip_to_the_part_that_needs_it():
    def forward(m, x):
        d1 = m.down1(x)
        d2 = m.down2(F.max_pool2d(d1, 2))
        middle = m.middle(F.max_pool2d(d2, 2))
        u2 = m.up2(torch.cat([F.interpolate(middle, scale_factor=2), d2], 1))
        return m.up1(torch.cat([F.interpolate(u2, scale_factor=2), d1], 1))

    conv = {name: nn.Conv2d(i, 2, 1) for name, i in [("down1", 2), ("down2", 2), ("middle", 2), ("up2", 4), ("up1", 4)]}
    model = model_of(forward, **conv)

    whole, plan = parted(model, ["down2", "middle", "up2"], torch.randn(2, 2, 8, 8))

    assert [{"down1", "down2", "middle", "up2", "up1"} & nodes for nodes in nodes_of(whole, plan)] == [
        {"down1", "down2"},
        {"middle"},
        {"up2"},
        {"up1"},
    ]
    assert {(c.name, c.consumers) for c in plan.crossings} == {
        ("down2", ("part_1", "part_2")),
        ("middle", ("part_2",)),
        ("up2", ("part_3",)),
        ("down1", ("part_3",)),
    }
    assert_parts_equal_the_whole(whole, plan)


def test_two_towers_are_parts_side_by_side():
    model = model_of(lambda m, x, y: m.c(m.a(x) + m.b(y)), a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"add", "c"}]
    assert [part.level for part in plan.parts] == [0, 0, 1]
    assert plan.parts[1].inputs == ("y",)


def test_towers_of_different_depth_stay_independent():
    def forward(m, x, y):
        return m.d(m.b(m.a(x)) + m.c(y))

    model = model_of(forward, a=linear(), b=linear(), c=linear(), d=linear())

    whole, plan = parted(model, ["a", "b", "c"], X, X)

    assert sorted(map(sorted, nodes_of(whole, plan))) == [["a"], ["add", "d"], ["b"], ["c"]]
    assert next(part for part in plan.parts if "c" in part.nodes).inputs == ("y",)


def test_an_early_exit_is_a_part_of_its_own():
    def forward(m, x):
        h = m.a(x)
        return m.early(h), m.b(h)

    model = model_of(forward, a=linear(), b=linear(), early=linear())

    whole, plan = parted(model, ["a"], X)

    assert nodes_of(whole, plan) == [{"a"}, {"early"}, {"b"}]
    assert plan.crossings[0].consumers == ("part_1", "part_2")
    assert_parts_equal_the_whole(whole, plan)


def test_random_numbers_are_drawn_in_the_order_of_the_graph():
    def forward(m, x):
        h = F.dropout(m.a(x))
        deep = F.dropout(m.b(h))
        return m.c(deep + F.dropout(h))  # the skip path draws after the main path

    model = model_of(forward, a=linear(), b=linear(), c=linear())

    whole, plan = parted(model, [("dropout", "b")], X)

    assert len(plan.parts) == 2
    assert "dropout@3" in nodes_of(whole, plan)[1]
    assert_parts_equal_the_whole(whole, plan)


def test_a_tower_with_dropout_is_not_torn_apart_by_a_cut_in_the_other():
    def forward(m, x, y):
        left = F.dropout(m.b(F.dropout(m.a(x))))
        right = m.d(F.dropout(m.c(y)))
        return m.e(left + right)

    model = model_of(forward, **{name: linear() for name in "abcde"})

    whole, plan = parted(model, [("dropout", "b"), ("dropout@2", "add"), ("d", "add")], X, X)

    assert {"c", "dropout@3", "d"} in nodes_of(whole, plan)
    assert_parts_equal_the_whole(whole, plan)


def test_only_what_takes_turns_is_raised_to_a_later_level():
    def forward(m, x, y):
        h = F.dropout(m.a(x))
        left = F.dropout(m.b(h)) + F.dropout(h)
        right = m.d(F.dropout(m.c(y)))
        return m.e(left + right)

    model = model_of(forward, **{name: linear() for name in "abcde"})

    whole, plan = parted(model, [("dropout", "b"), ("add", "add@2"), ("d", "add@2")], X, X)

    assert {"b", "dropout@2", "dropout@3", "add"} in nodes_of(whole, plan)
    assert {"c", "dropout@4", "d"} in nodes_of(whole, plan)
    assert_parts_equal_the_whole(whole, plan)


def test_parts_on_one_level_that_take_turns_at_random_numbers_become_one():
    def forward(m, x, y):
        left, right = F.dropout(m.a(x)), F.dropout(m.b(y))
        return m.e(F.dropout(m.c(left)) + F.dropout(m.d(right)))

    model = model_of(forward, **{name: linear() for name in "abcde"})

    whole, plan = parted(model, [("dropout@3", "add"), ("dropout@4", "add")], X, X)

    assert len(plan.parts) == 2
    taking_turns = "take turns at random numbers or at a changing buffer: they are one part"
    assert plan.notes == (f"what begins at 'a' and what begins at 'b' {taking_turns}",)
    assert_parts_equal_the_whole(whole, plan)


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
