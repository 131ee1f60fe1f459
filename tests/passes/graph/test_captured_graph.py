"""A captured graph runs on the model's own parts."""

import pytest
import torch
from torch import fx, nn

from dnigraph.passes.graph.captured_graph import CapturedGraph, lookup
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
