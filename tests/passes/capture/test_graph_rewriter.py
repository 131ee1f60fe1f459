"""A graph of torch's, written in the language of captured graphs."""

import operator
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from dnigraph.passes.capture.graph_rewriter import GraphRewriter
from dnigraph.passes.errors import CaptureError
from dnigraph.passes.graph.nodes import Call

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Rewriter(GraphRewriter):
    """Knows modules by paths behind "self."."""

    def locate(self, module, path, kind):
        return (path.removeprefix("self."), kind) if path.startswith("self.") else None

    def set_grad(self, node):
        self.mode = replace(self.mode, grad=node.args[0])

    RULES: ClassVar = {torch._C._set_grad_enabled: set_grad}


def rewritten(graph, owner=None):
    owner = owner or nn.Module()
    rewriter = Rewriter(owner)
    rewriter.write(graph.nodes)
    return fx.GraphModule(owner, rewriter.graph)


def test_what_has_no_rule_is_copied_under_its_name():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.create_node("call_function", torch.mul, (x, 2), name="twice"),))

    module = rewritten(graph)

    assert [node.name for node in module.graph.nodes] == ["x", "twice", "output"]
    assert torch.equal(module(X)[0], X * 2)


def test_a_region_with_a_mode_becomes_calls_under_that_mode():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, (False,))
    h = graph.call_method("mul", (x, 2))
    graph.call_function(torch._C._set_grad_enabled, (True,))
    graph.output((h, graph.call_function(operator.mul, (x, 3))))

    module = rewritten(graph)
    still, learning = module(X.clone().requires_grad_())

    assert [type(node.target) is Call for node in module.graph.nodes] == [False, True, False, False]
    assert not still.requires_grad and learning.requires_grad
    assert torch.equal(still, X * 2) and torch.is_grad_enabled()


def test_a_module_in_a_region_with_a_mode_is_refused():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch._C._set_grad_enabled, (False,))
    graph.output((graph.call_module("fc", (x,)),))

    with pytest.raises(CaptureError, match="the module 'fc' runs in a region with a mode of its own"):
        rewritten(graph)


def test_calls_of_modules_go_by_the_paths_of_the_model_and_count_from_two():
    graph = fx.Graph()
    x = graph.placeholder("x")
    h = graph.call_function(torch.tanh, (x,))
    h.meta["nn_module_stack"] = {
        "a": ("self.body", nn.Sequential),
        "b@1": ("self.body.0", nn.Tanh),
        "c": ("G", nn.Tanh),
    }
    graph.output((h,))

    (tanh,) = rewritten(graph).graph.find_nodes(op="call_function", target=torch.tanh)

    expected = {"body": ("body", nn.Sequential), "body.0@2": ("body.0", nn.Tanh)}
    assert tanh.meta["nn_module_stack"] == expected


def test_what_a_transform_of_torch_func_runs_is_one_call():
    class Mapping(nn.Module):
        def forward(self, x):
            return torch.vmap(lambda row: row * 2)(x)

    program = torch.export.export(Mapping(), (X,), strict=False)
    graph = program.graph_module.graph

    rewriter = Rewriter(program.graph_module)
    rewriter.write(graph.nodes)
    calls = [node for node in rewriter.graph.nodes if isinstance(node.target, Call)]

    assert len(calls) == 1 and calls[0].name.startswith("forward")
    assert torch.equal(fx.GraphModule(program.graph_module, rewriter.graph)(X)[0], X * 2)
