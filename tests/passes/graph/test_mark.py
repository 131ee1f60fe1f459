"""The mark that a model's author leaves."""

import torch
from torch import fx

from dnigraph.passes.graph.mark import MarkListener, cut, mark_name


def test_a_mark_is_the_identity_anywhere_else():
    x = torch.randn(2)

    assert cut(x) is x
    assert cut(3) == 3 and cut("text") == "text" and cut(None) is None
    assert cut([x, {"a": x}], "name") == [x, {"a": x}]


def test_a_listener_hears_each_tensor_that_is_marked_and_hands_on_what_it_returns():
    x, y = torch.randn(2), torch.randn(2)
    marks = []

    with MarkListener(lambda value, name: marks.append((value, name)) or value * 0):
        first, held = cut(x), cut({"y": y}, "both")
        plain = x + 1

    assert [(value is x or value is y, name) for value, name in marks] == [(True, None), (True, "both")]
    assert first.eq(0).all() and held["y"].eq(0).all() and torch.equal(plain, x + 1)


def test_a_node_that_is_a_mark_has_the_name_of_the_mark():
    graph = fx.Graph()
    x = graph.placeholder("x")

    assert mark_name(graph.call_function(cut, (x,), {"name": "mid"})) == "mid"
    assert mark_name(graph.call_function(cut, (x,), {"name": None})) is None
    assert mark_name(graph.call_function(torch.exp, (x,), {"name": "mid"})) is None
