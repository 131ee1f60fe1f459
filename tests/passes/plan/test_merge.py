"""Parts that nobody asked for, or that have nothing to learn, join a neighbour."""

import torch
import torch.nn.functional as F
from kit.partition_programs import X, assert_parts_equal_the_whole, captured, chain, linear, model_of, nodes_of, parted
from torch import nn

from dnigraph.passes.plan.partition import partition


def test_a_branch_that_nobody_asked_to_cut_goes_with_the_part_that_it_leads_to():
    def forward(m, x, words):
        h = m.a(x)
        return m.c(m.b(h) + m.side(h) + m.embed(words))  # like the downsampling beside a block

    model = model_of(forward, **{name: linear() for name in ("a", "b", "side", "embed", "c")})

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b"}, {"side", "embed", "add", "add@2", "c"}]
    assert all(crossing.asked for crossing in plan.crossings)
    assert_parts_equal_the_whole(whole, plan)


def test_a_counter_that_nothing_waits_for_is_no_part():
    def forward(m, x):
        h = m.a(x)
        m.seen.add_(1)
        return m.b(h)

    model = model_of(forward, a=linear(), b=linear())
    model.register_buffer("seen", torch.ones(()))

    whole, plan = parted(model, ["a"], X)

    assert len(plan.parts) == 2
    assert_parts_equal_the_whole(whole, plan)


def test_a_prefix_without_parameters_joins_what_follows():
    model = chain(a=nn.Dropout(), b=linear(), c=linear())

    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert nodes_of(whole, plan) == [{"a", "b"}, {"c"}]
    assert whole.labelled(plan.cuts) == (("b", "c"),)
    assert plan.notes == ("cut after 'a' dropped: nothing before it has a parameter to train",)


def test_a_random_draw_of_a_value_s_size_joins_what_uses_it():
    def forward(m, x):
        h = m.a(x)
        return m.b(h + torch.rand_like(h))

    model = model_of(forward, a=linear(), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "rand_like"), ("rand_like", "add"), ("a", "add")))

    assert nodes_of(whole, plan) == [{"a"}, {"rand_like", "add", "b"}]


def test_a_frozen_prefix_joins_what_follows():
    model = chain(a=linear().requires_grad_(False), b=linear(), c=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert nodes_of(whole, plan) == [{"a", "b"}, {"c"}]


def test_a_suffix_without_parameters_joins_what_precedes():
    model = chain(a=linear(), b=linear(), c=nn.Softmax(1))

    whole, plan = parted(model, [("a", "b"), ("b", "c")], X)

    assert nodes_of(whole, plan) == [{"a"}, {"b", "c"}]
    assert plan.notes == ("cut after 'b' dropped: nothing after it has a parameter to train",)


def test_a_prefix_of_two_towers_joins_one_and_leaves_the_cut_to_the_other():
    def forward(m, x):
        h = F.dropout(x)
        return m.a(h), m.b(h)

    model = model_of(forward, a=linear(), b=linear())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("dropout", "a"), ("dropout", "b")))

    assert nodes_of(whole, plan) == [{"dropout", "a"}, {"b"}]
    assert not plan.crossings[0].gradient


def test_a_prefix_that_cannot_join_what_uses_it_joins_what_runs_next():
    def forward(m, x, y):
        noise = F.dropout(x)
        h = F.dropout(m.a(y))  # draws after the noise and before the part that uses it
        return m.c(m.b(h) * noise)

    model = model_of(forward, a=linear(), b=linear(), c=linear())
    whole = captured(model, X, X)

    plan = partition(whole.graph, whole.edges(("dropout@2", "b")))

    assert nodes_of(whole, plan) == [{"dropout", "a", "dropout@2"}, {"b", "mul", "c"}]
    assert_parts_equal_the_whole(whole, plan)


def test_towers_that_meet_without_parameters_stay_apart():
    model = model_of(lambda m, x, y: m.a(x) * m.b(y), a=linear(), b=linear())

    whole, plan = parted(model, ["a", "b"], X, X)

    assert nodes_of(whole, plan) == [{"a"}, {"b", "mul"}]


def test_cuts_that_separate_nothing_leave_one_part_and_say_why():
    model = chain(a=nn.Flatten(), b=linear(), c=nn.ReLU())
    whole = captured(model, X)

    plan = partition(whole.graph, whole.edges(("a", "b"), ("b", "c")))

    assert len(plan.parts) == 1
    assert plan.cuts == plan.crossings == ()
    assert plan.notes == (
        "cut after 'a' dropped: no gradient crosses there",
        "cut after 'b' dropped: nothing after it has a parameter to train",
    )
