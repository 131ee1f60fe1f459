"""What is known of each node of an annotated graph, in plain values."""

import operator

import pytest
import torch
from kit.replay import Doing
from torch import fx, nn

from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.graph.facts import batch_dim, facts_of
from dnigraph.passes.graph.nodes import set_attribute

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def facts_in(model, x=X):
    captured = capture(model, (x,), {}, "record")
    annotate(captured, model, [x])
    facts = facts_of(captured.graph)
    return facts, {fact.name: fact for fact in facts}


def test_each_node_is_known_by_its_place_its_neighbours_and_its_kind():
    facts, named = facts_in(Doing(lambda m, x: (m.outer(h := m.inner(x)), h)))
    x, inner, outer = named["x"], named["inner"], named["outer"]

    assert [fact.name for fact in facts] == ["x", "inner", "outer"]
    assert [facts.at[fact.node] for fact in facts] == [0, 1, 2]
    assert facts.computed == (1, 2)
    assert [fact.kind for fact in facts] == ["input", "computed", "computed"]
    assert (inner.inputs, inner.users, outer.users) == ((0,), (2,), ())
    assert (x.handed, inner.handed, outer.handed) == (False, True, True)
    assert (x.gradient, inner.gradient) == (False, True)
    assert inner.bytes == X.numel() * 4
    assert not any(fact.effect or fact.random or fact.bundle for fact in facts)


def test_a_layer_has_its_parameters_and_those_that_are_frozen_learn_nothing():
    model = Doing(lambda m, x: m.outer(m.inner(x)))
    model.outer.requires_grad_(False)
    _, named = facts_in(model)

    assert [(name, learns) for name, _, learns in named["inner"].parameters] == [
        ("inner.weight", True),
        ("inner.bias", True),
    ]
    assert named["inner"].trained
    assert [learns for _, _, learns in named["outer"].parameters] == [False, False]
    assert not named["outer"].trained


def test_a_layer_may_change_its_buffers_and_a_buffer_that_is_read_is_a_constant():
    model = Doing(lambda m, x: m.norm(m.inner(x)) + m.seen)
    model.norm = nn.BatchNorm1d(4)
    model.register_buffer("seen", torch.ones(()))
    _, named = facts_in(model)

    assert set(named["norm"].buffers) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert (named["seen"].kind, named["seen"].buffers) == ("constant", ())


def test_what_is_drawn_is_random_and_what_nobody_reads_is_an_effect():
    _, named = facts_in(Doing(lambda m, x: m.inner(nn.functional.dropout(x)).add_(1)[0]))

    assert named["dropout"].random and not named["inner"].random

    graph = fx.Graph()
    x = graph.placeholder("x")
    lone = graph.call_function(torch.relu, (x,))
    graph.output((x,))
    given, effect = facts_of(graph)
    assert effect.node is lone and effect.effect
    assert not given.effect and given.users == (1,)


def test_in_place_writes_name_the_storage():
    _, named = facts_in(Doing(lambda m, x: m.inner(x).mul_(2)))

    assert named["inner"].holds and named["mul_"].writes == named["inner"].holds == named["mul_"].holds


def test_data_that_is_set_is_a_write_too():
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["storage"] = 7
    graph.call_function(set_attribute, (x, "data", x))
    graph.output((x,))

    given, setting = facts_of(graph)

    assert (given.holds, given.writes, setting.writes) == ({7}, set(), {7})


@pytest.mark.parametrize("read", [operator.getitem, getattr])
def test_a_bundle_is_known_by_its_items_and_an_item_by_its_bundle(read):
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(torch.max, (x, 0))
    inside = graph.call_function(read, (made, 1))
    tensor = graph.call_function(read, (inside, 0))
    tensor.meta["dtype"] = torch.float32
    number = graph.call_function(torch.Tensor.size, (x, 0))
    graph.output((tensor, number))

    bundles = {fact.node: fact.bundle for fact in facts_of(graph)}

    assert bundles == {x: False, made: True, inside: True, tensor: False, number: False}


def test_what_is_taken_out_of_a_container_is_a_bundle_unless_it_is_a_tensor():
    graph = fx.Graph()
    made = graph.call_function(torch.max, (graph.placeholder("x"), 0))
    made.meta["container"] = True
    item = graph.call_function(operator.getitem, (made, 0))
    graph.output((item,))

    assert [fact.bundle for fact in facts_of(graph)] == [False, True, True]


@pytest.mark.parametrize(
    ("shape", "batch", "samples", "dim"),
    [
        ((), 4, 0, 0),
        ((4, 7), 4, 0, 0),
        ((7, 4), 4, 0, 1),
        ((4, 4), 4, 0, 0),
        ((7, 5), 4, 0, None),
        ((2, 7), 4, 2, 0),  # two samples of sizes that differ, padded to one tensor
        ((7, 2), 4, 2, None),
        ((1, 7), 4, 1, None),  # one tensor is no list of samples
    ],
)
def test_the_batch_is_the_first_dimension_of_its_size(shape, batch, samples, dim):
    assert batch_dim(shape, batch, samples) == dim
