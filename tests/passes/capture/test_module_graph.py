"""What the modules of one call hand each other, as a graph."""

import torch
from kit.replay import Doing, assert_untouched, fingerprint
from torch import nn

import dnigraph as dg
from dnigraph.passes.capture.module_graph import _Mark, event, events, heard, observe, parameters

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def reads_of(graph):
    return {node.name: [given.name for given in node.all_input_nodes] for node in graph.nodes}


def skips(model, x):
    h = torch.relu(model.inner(x))
    return model.outer(model.inner(h) + h)


def test_events_are_the_borders_of_modules_in_order_and_read_what_their_gradient_reaches():
    graph = observe(Doing(skips), (X,), {})

    names = ["inner", "inner_call2_in", "inner_call2", "outer_in", "outer"]
    assert [node.name for node in events(graph)] == names
    assert reads_of(graph)["outer_in"] == ["inner", "inner_call2"]
    assert reads_of(graph)["output"] == ["outer"]


def test_the_observation_leaves_the_model_as_it_was():
    model = Doing(lambda m, x: torch.dropout(m.inner(x), 0.5, True) * m.seen.add_(1))
    model.inner.register_forward_hook(lambda *_: None)
    before = fingerprint(model)

    observe(model, (X,), {})

    assert_untouched(before, model)


def test_a_mark_is_an_event_and_what_the_model_adds_at_its_end_is_the_result():
    graph = observe(Doing(lambda m, x: dg.cut(m.inner(x), name="middle") * 2), (X,), {})

    assert [(n.name, n.target) for n in events(graph)] == [("inner", event), ("middle", dg.cut)]
    assert reads_of(graph)["result"] == ["middle"]


def test_flops_and_parameters_are_of_what_ran_since_the_event_before():
    model = Doing(lambda m, x: m.outer(m.inner(x) @ torch.ones(4, 4)))

    node_called = {node.name: node for node in observe(model, (X,), {}).nodes}

    assert [node_called[n].meta["flops"] for n in ("inner", "outer_in", "outer")] == [2 * 6 * 4 * 4] * 3
    assert parameters([node_called["outer"]]) == {"outer.weight", "outer.bias"}
    assert parameters([node_called["outer_in"]]) == set()


def test_what_hears_a_gradient_past_the_sites_is_found():
    graph = observe(Doing(skips), (X,), {})
    node_called = {node.name: node for node in graph.nodes}

    reached = heard([node_called["outer"]], {node_called["inner_call2"]})

    assert node_called["inner"] in reached and node_called["inner_call2_in"] not in reached


def test_a_value_along_a_line_has_its_channels_first():
    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.swap = nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(0, 1)

        def forward(self, x):
            return self.swap(self.act(self.conv(x)))

    graph = observe(Wave(), (torch.randn(4, 2, 9),), {})

    assert {n.name: n.meta["channels_first"] for n in events(graph)} == {
        "conv": True,
        "act_in": True,
        "act": True,
        "swap_in": True,
        "swap": False,
    }


def test_a_gradient_goes_through_a_passage_as_it_is():
    x, gradient = torch.ones(3, requires_grad=True), torch.tensor([1.0, -2.0, 3.0])

    _Mark.apply(x, 5).backward(gradient)

    assert torch.equal(x.grad, gradient)
