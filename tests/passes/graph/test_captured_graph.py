"""A captured graph runs on the model's own parts."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
from torch import fx, nn

from dnigraph.passes.graph.captured_graph import CapturedGraph, copy_graph, lookup, written
from dnigraph.passes.graph.nodes import Call, Mode, set_attribute
from dnigraph.passes.graph.own_names import call
from dnigraph.passes.graph.pytrees import take_apart

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def calls(name, **constants):
    """A graph that calls a module and adds a constant."""
    graph = fx.Graph()
    value = graph.call_module(name, (graph.placeholder("x"),))
    for constant in constants:
        value = graph.call_function(torch.add, (value, graph.get_attr(constant)))
    graph.output((value,))
    return CapturedGraph(graph, "by hand", take_apart(())[1], constants)


@pytest.mark.parametrize("name", ["fc", "code", "graph", "print_readable", "_modules_of_mine"])
def test_a_layer_may_be_called_what_a_graph_module_calls_its_own(name):
    model = nn.Module()
    model._modules[name] = layer = nn.Linear(4, 4)
    captured = calls(name)

    (out,) = captured.module(model)(X)

    assert torch.equal(out, layer(X))
    assert [node.target for node in captured.graph.find_nodes(op="call_module")] == [name]  # the graph is unchanged


def test_constants_stand_before_the_models_own():
    model = nn.Sequential(nn.Linear(4, 4))
    constant = torch.ones(4)

    (out,) = calls("0", _constant_0=constant).module(model)(X)

    assert torch.equal(out, model(X) + 1)
    assert lookup(model, {"_constant_0": constant}, "_constant_0") is constant
    assert lookup(model, {}, "0.weight") is model[0].weight


class Scale:
    def __init__(self, by=2):
        self.by = by

    def __call__(self, x):
        return x * self.by

    def times(self, x):
        return x * self.by


@pytest.mark.parametrize(
    ("made", "held"),
    [
        (lambda scale: scale, lambda target: target),
        (lambda scale: functools.partial(scale), lambda target: target.func),
        (lambda scale: functools.partial(call, scale), lambda target: target.args[0]),
        (lambda scale: functools.partial(call, function=scale), lambda target: target.keywords["function"]),
        (lambda scale: scale.times, lambda target: target.__self__),
        (lambda scale: Call(scale), lambda target: target.function),
        (lambda scale: Call(torch.mul, slots=((scale, 1), {})), lambda target: target.slots[0][0]),
        (lambda scale: Call(torch.mul, slots=((), {"a": scale})), lambda target: target.slots[1]["a"]),
        (lambda scale: Call(torch.mul, slots=((Few([scale], 1),), {})), lambda target: target.slots[0][0].first[0]),
    ],
    ids="itself function argument keyword method call slot named_slot tuple".split(),
)
def test_in_a_copy_of_a_graph_each_object_that_a_target_holds_is_its_copy_and_another_stays(made, held):
    scale, other = Scale(), Scale(3)
    graph, target = fx.Graph(), made(scale)
    graph.output((graph.create_node("call_function", target, (graph.placeholder("x"),), name="made"),))

    moved, kept = (copy_graph(graph, memo) for memo in ({id(scale): other}, {id(other): scale}))

    assert held(target_of(moved)) is other and held(target_of(graph)) is scale
    assert type(target_of(moved)) is type(target)
    assert target_of(kept) is target


def target_of(graph):
    return next(node.target for node in graph.nodes if node.op == "call_function")


class Few(NamedTuple):
    first: Any
    second: Any


def test_a_partial_that_is_copied_keeps_its_name_and_a_call_its_modes():
    scale, other = Scale(), Scale(3)
    effect = functools.partial(call, scale)
    effect.__name__ = "keep_it"
    with torch.no_grad():
        inner = Call(scale, Mode.now(), Mode.now())
    graph = fx.Graph()
    x = graph.call_function(effect, (graph.placeholder("x"),))
    graph.output((graph.call_function(inner, (x,)),))

    first, second = list(copy_graph(graph, {id(scale): other}).nodes)[1:3]

    assert first.target.__name__ == "keep_it"
    assert second.target.mode == inner.mode and second.target.outside == inner.outside
    assert not second.target.mode.grad


def test_arguments_of_nodes_are_replaced_in_a_copy_too():
    scale, other = Scale(), Scale(3)
    graph = fx.Graph()
    graph.output((graph.call_function(call, (scale, graph.placeholder("x")), {"note": {"a": [scale]}}),))

    node = list(copy_graph(graph, {id(scale): other}).nodes)[1]

    assert node.args[0] is other and node.kwargs["note"]["a"][0] is other


def test_what_a_graph_writes_to_are_the_tensors_whose_memory_it_changes_or_sets():
    graph = fx.Graph()
    read = {name: graph.get_attr(name) for name in ("written", "tied", "set", "read", "without_memory")}
    for name, storage in {"written": 1, "tied": 1, "set": 2, "read": 3}.items():
        read[name].meta["storage"] = storage
    graph.call_method("add_", (read["written"], 1)).meta["writes"] = (1,)
    graph.call_function(set_attribute, (read["set"], "data", read["read"]))
    graph.call_function(set_attribute, (read["without_memory"], "data", read["read"]))
    graph.output(())

    assert written(graph) == {"written", "tied", "set"}


def test_a_graph_that_only_reads_writes_nothing():
    graph = fx.Graph()
    graph.get_attr("read").meta["storage"] = 3
    graph.get_attr("without_memory")
    graph.output(())

    assert written(graph) == set()


def test_constants_go_with_a_copy_of_the_model_where_it_has_copies_of_them():
    mine, others = torch.ones(1), torch.ones(2)
    captured = calls("fc", mine=mine, others=others)
    copied = mine.clone()

    again = captured.copy({id(mine): copied})

    assert again.constants["mine"] is copied and again.constants["others"] is others
    assert captured.constants["mine"] is mine and again.graph is not captured.graph
    assert again.rung == "by hand"
