"""A symbolic trace, as a captured graph."""

from typing import NamedTuple

import pytest
import torch
from torch import fx, nn

from dnigraph.passes.capture.symbolic import _plain, trace
from dnigraph.passes.errors import CaptureError

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Doing(nn.Module):
    """Does what a function says, with a signature that a trace can take."""

    def __init__(self, function):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.__dict__["function"] = function

    def forward(self, x):
        return self.function(self, x)


class Pair(NamedTuple):
    one: object
    other: object


def replayed(model, *args):
    captured = trace(model)
    return captured.outputs.build(captured.module(model)(*args))


@pytest.mark.parametrize(
    "result",
    [
        lambda h: h,
        lambda h: [h, (h * 2, None)],
        lambda h: {"y": h, "name": "a constant"},
        lambda h: Pair(h, [h]),
    ],
    ids=["tensor", "list", "dict", "named tuple"],
)
def test_results_come_back_in_containers_of_their_own_class(result):
    model = Doing(lambda m, x: result(m.inner(x)))

    found, expected = replayed(model, X), model(X)

    assert repr(found) == repr(expected) and type(found) is type(expected)


def test_further_calls_of_a_module_are_counted_from_two():
    graph = trace(nn.Sequential(layer := nn.Linear(4, 4), nn.Tanh(), layer)).graph

    keys = [list(node.meta["nn_module_stack"]) for node in graph.find_nodes(op="call_module", target="0")]
    assert keys == [["0"], ["0@2"]]


def test_a_constant_that_tracing_makes_is_the_graphs_and_not_the_models():
    model = Doing(lambda m, x: m.inner(x) + torch.ones(4))
    names = set(vars(model))

    captured = trace(model)

    assert len(captured.constants) == 1 and set(vars(model)) == names
    assert torch.equal(replayed(model, X), model(X))


def test_a_branch_on_a_tensor_is_refused():
    with pytest.raises(CaptureError, match=r"torch.fx.symbolic_trace: .*control flow"):
        trace(Doing(lambda m, x: m.inner(x) if x.sum() > 0 else x))


def test_what_fx_holds_in_classes_of_its_own_becomes_lists_dicts_and_tuples_again():
    held = fx.immutable_collections.immutable_dict(a=fx.immutable_collections.immutable_list([1, Pair(2, (3,))]))

    plain = _plain(held)

    assert plain == {"a": [1, Pair(2, (3,))]}
    assert (type(plain), type(plain["a"]), type(plain["a"][1])) == (dict, list, Pair)
