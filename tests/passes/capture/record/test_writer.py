"""The graph of a run while it is written: it holds on to nothing, and its cost is linear."""

import gc
import io
import itertools
import operator
import sys
import threading
import weakref

import pytest
import torch
from kit.replay import Doing, Net
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.capture.record.writer import GraphWriter
from dnigraph.passes.graph.nodes import guard

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_a_recording_grows_no_faster_than_the_model():
    def calls(depth):
        model, count = Net(*[Residual() for _ in range(depth)]), itertools.count()
        sys.setprofile(lambda *_: next(count))
        try:
            capture(model, (X,), {}, "record")
        finally:
            sys.setprofile(None)
        return next(count)

    calls(20)

    assert calls(400) < 4 * 1.2 * calls(100)  # quadratic would be sixteen times as many


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + (x * self.weight).relu() / x.shape[0]


def test_a_recording_lets_go_of_what_the_run_lets_go_of():
    class Watching(nn.Module):
        def forward(self, x):
            gone = []
            with torch.no_grad():
                for _ in range(3):
                    y = x + 1
                    gone.append(weakref.ref(y))
                    x = y * 2
            del y
            alive.write(str(sum(tensor() is not None for tensor in gone)))
            return x

    alive = io.StringIO()  # a list that grows in every call would be a side effect

    capture(Watching(), (X,), {}, "record")

    assert set(alive.getvalue()) == {"0"}


def test_what_the_model_made_is_free_again_also_where_somebody_keeps_a_size():
    kept, seen = {}, io.StringIO()

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            y = self.layer(x)
            kept.setdefault("size", y.shape[0] + 1)
            seen.write("made ")
            weakref.finalize(y, seen.write, "free ")
            return y.relu()

    capture(Keeping(), (X,), {})
    gc.collect()

    assert seen.getvalue().count("made") == seen.getvalue().count("free") > 0


@pytest.fixture
def writer():
    return GraphWriter({})


def guarded(writer):
    return [node.args[1] for node in writer.graph.nodes if node.target is guard]


def test_a_running_module_is_named_in_messages_and_its_calls_are_counted_on_nodes(writer):
    x = writer.graph.placeholder("x")
    assert writer.where() == "the model"

    with writer.in_module("", Net):
        assert writer.where() == "the model"
        with writer.in_module("fc", nn.Linear):
            assert writer.where() == "'fc'"
            first = writer.call(torch.relu, (x,))
        with writer.in_module("fc", nn.Linear):
            second = writer.call(torch.relu, (x,))
    last = writer.call(torch.relu, (x,))

    stacks = [node.meta["nn_module_stack"] for node in (first, second, last)]
    assert stacks == [{"fc": ("fc", nn.Linear)}, {"fc@2": ("fc", nn.Linear)}, {}]


def test_numbers_beside_the_tensors_of_an_opaque_call_are_guarded_however_they_are_nested(writer):
    node = writer.graph.placeholder("x")

    writer.pin((X, 3, {"a": [True, None, "text"], "b": X}, 0.5), node)

    assert guarded(writer) == [3, True, "text", 0.5]


def test_a_number_alone_is_guarded_and_a_tensor_alone_is_not(writer):
    node = writer.graph.placeholder("x")

    writer.pin(X, node)
    assert guarded(writer) == []
    writer.pin(7, node)
    assert guarded(writer) == [7]


def test_what_containers_hold_is_made_by_items_of_their_node_and_plain_values_are_nobodys(writer):
    node, inner, number = writer.graph.placeholder("x"), torch.ones(1), 12345678
    pair = (inner, {"a": X}, number, None)

    writer.bind(pair, node)

    assert writer.node_of(pair) is node
    assert [writer.node_of(tensor).args[1] for tensor in (inner, X)] == [0, "a"]
    assert writer.node_of(number) is writer.node_of(None) is None
    assert [n.args[1] for n in writer.graph.find_nodes(op="call_function", target=operator.getitem)] == [0, 1, "a"]


def test_a_tensor_that_is_gone_made_nothing(writer):
    tensor = torch.ones(1)
    key = id(tensor)
    writer.bind(tensor, writer.graph.placeholder("x"))
    assert key in writer._nodes and key in writer._watched

    del tensor

    assert key not in writer._nodes and key not in writer._watched


def test_a_size_is_one_symbol_until_it_is_another_number(writer):
    node = writer.graph.placeholder("x")
    size = writer.size(node, torch.Tensor.size, 3, 0)

    assert writer.size(node, torch.Tensor.size, 3, 0) is size
    assert writer.size(node, torch.Tensor.size, 3, 1) is not size
    resized = writer.size(node, torch.Tensor.size, 4, 0)
    assert resized is not size and resized.value == 4


def test_what_runs_aside_or_after_the_run_or_elsewhere_is_not_listened_to(writer):
    assert writer.listening is True
    with writer.aside(), writer.aside():
        assert writer.listening is False
    with writer.aside():
        pass
    assert writer.listening is True
    heard = []
    thread = threading.Thread(target=lambda: heard.append(writer.listening))
    thread.start()
    thread.join()
    assert heard == [False]
    writer.open = False
    assert writer.listening is False


def test_parameters_and_constants_are_written_behind_the_inputs_in_the_order_in_which_they_are_read():
    weight, constant = nn.Parameter(torch.ones(1)), torch.ones(1)
    writer = GraphWriter({id(weight): "fc.weight"})
    writer.inputs(["x", "text", "y"], [X, "a", X + 1])
    writer.call(torch.relu, (writer.node_of(X),))

    assert writer.attribute(constant) is writer.attribute(constant)
    writer.attribute(weight)

    assert [str(node.target) for node in writer.graph.nodes][:4] == ["x", "y", "_constant_0", "fc.weight"]
    assert writer.constants["_constant_0"] is constant and len(writer.constants) == 1
    assert writer.computed(weight) is writer.computed(constant) is None and writer.computed(X) is not None
    assert writer.known(weight) is writer.attribute(weight) and writer.known(torch.ones(1)) is None


@pytest.mark.parametrize(
    ("function", "sets", "writes", "spoils"),
    [
        (lambda model, x, y: model.inner(x) + y, set(), (), ()),
        (lambda model, x, y: model.inner(x) + y.add_(1), set(), (), (1,)),
        (lambda model, x, y: model.inner(x.mul_(2)) + y.add_(1), set(), (), (0, 1)),
        (lambda model, x, y: model.inner(x) * model.plain.add_(1), set(), ("plain",), ()),
        (lambda model, x, y: model.inner(x) * model.seen.add_(1), set(), (), ()),  # a buffer: known as such
        (lambda model, x, y: setattr(model, "last", x * 2) or model.inner(x), {("", "last")}, (), ()),
        (lambda model, x, y: setattr(model.outer, "last", x * 2) or model.inner(x), {("outer", "last")}, (), ()),
    ],
    ids="nothing input inputs plain buffer attribute attribute_below".split(),
)
def test_a_recording_says_what_a_forward_sets_and_writes(function, sets, writes, spoils):
    model = Doing(function)
    model.plain = torch.ones(4)

    captured = capture(model, (X.clone(), X.clone()), {}, "record")

    assert (captured.sets, captured.writes, captured.spoils) == (sets, writes, spoils)
