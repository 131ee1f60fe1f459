"""The layers of a graph behind a value: where they begin and end, and which of them can stand by themselves."""

import torch
import torch.nn.functional as F
from torch import nn

from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.record.record import record
from dnigraph.passes.graph.captured_graph import lookup
from dnigraph.passes.parts.later_layers import later_layers

X = torch.randn(3, 6)


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.run = forward
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.run(self, x)


def found(forward, at="a"):
    """The weights of what comes first and of each layer, and the graph."""
    model = Net(forward)
    captured = record(model, (X,), {})
    annotate(captured, model, [X])
    graph = captured.graph
    value = next(node for node in graph.nodes if node.name == at)

    def is_weight(target):
        thing = lookup(model, captured.constants, target)
        return any(p.ndim > 1 for p in (thing.parameters() if isinstance(thing, nn.Module) else [thing]))

    return later_layers(graph, value, is_weight)


def test_a_layer_goes_from_its_weights_to_the_next_ones():
    before, layers = found(lambda m, x: m.c(torch.tanh(m.norm(m.b(F.relu(m.a(x)))))))

    assert before.weights == () and [layer.weights for layer in layers] == [("b", "norm"), ("c",)]
    assert [(layer.takes, layer.gives, layer.last) for layer in layers] == [
        ((3, 8),) * 2 + (False,),
        ((3, 8), (3, 4), True),
    ]


def test_nothing_comes_before_weights_that_read_the_value():
    before, layers = found(lambda m, x: m.c(m.b(m.a(x))))

    assert before is None and [layer.weights for layer in layers] == [("b",), ("c",)]


def test_what_goes_around_weights_belongs_to_their_layer():
    _, layers = found(lambda m, x: (lambda h: m.c(h + m.b(h)))(m.a(x)))

    assert [layer.weights for layer in layers] == [("b",), ("c",)]
    assert [node.op for node in layers[0].graph.nodes] == ["placeholder", "call_module", "call_method", "output"]


def test_weights_between_which_there_is_no_single_value_are_one_layer():
    _, layers = found(lambda m, x: (lambda h: m.c(m.b(m.b(h)) + h))(m.a(x)))

    assert [layer.weights for layer in layers] == [("b",), ("c",)]


def test_a_value_of_the_models_own_counts_as_a_weight_and_an_input_stays_out():
    _, own = found(lambda m, x: m.c(m.a(x) @ m.b.weight))
    _, reading = found(lambda m, x: m.c(m.b(m.a(x)) * x.sum()))

    assert [layer.weights for layer in own] == [("b.weight",), ("c",)]
    assert [layer.weights for layer in reading] == [("c",)]


def test_a_write_in_place_is_told():
    _, layers = found(lambda m, x: m.c(F.relu_(m.b(m.a(x)))))

    assert [layer.writes for layer in layers] == [True, False]


def test_the_graph_stays_as_it_was():
    model = Net(lambda m, x: m.c(m.b(m.a(x))))
    captured = record(model, (X,), {})
    annotate(captured, model, [X])
    before = str(captured.graph)

    later_layers(captured.graph, next(n for n in captured.graph.nodes if n.name == "a"), lambda target: True)

    assert str(captured.graph) == before
