"""How far the guards of a graph can be trusted after they held once."""

import warnings

import pytest
import torch
from kit.replay import Doing
from torch import fx, nn

from dnigraph.passes.capture.annotate import annotate
from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.graph.guards import Trust, trust
from dnigraph.passes.graph.nodes import guard

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def trust_in(model, x=X):
    captured = capture(model, (x,), {}, "record")
    annotate(captured, model, [x])
    return trust(captured.graph)


def test_without_guards_a_graph_always_holds():
    assert trust_in(Doing(lambda m, x: m.inner(x) * x.shape[0])) is Trust.ALWAYS


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.inner(x) if x.shape[0] > 2 else m.outer(x),
        lambda m, x: sum(row for row in m.inner(x)),
        lambda m, x: m.inner(x).squeeze(),
        lambda m, x: m.inner(x) * [0, 1, 2, 3][len(x)],
        lambda m, x: m.inner(x) * (2 if m.inner(x).numel() * 2 > 7 else 3),
        lambda m, x: m.inner(x) * (2 if m.inner(x)[:, 1:].is_contiguous() else 3) if x.shape[0] > 2 else x,
        lambda m, x: m.inner(x) if x.stride(0) > 1 else m.outer(x),
    ],
    ids=["branch", "iteration", "squeeze", "index", "arithmetic", "layout", "layout by strides"],
)
def test_guards_on_sizes_hold_again_for_the_same_sizes(function, request):
    expected = Trust.NEVER if "layout" in request.node.name else Trust.SAME_SIZES  # strides are the caller's choice

    assert trust_in(Doing(function)) is expected


class Ragged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x[x[:, 0] > 0]

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros(3, 4)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.inner(x) if x.sum() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if x.max().item() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if torch.rand(()).item() > 0 else m.outer(x),
        lambda m, x: m.inner(x) if 0.0 in x else m.outer(x),
        lambda m, x: m.inner(x)[: max(1, len((x > 0).nonzero()) % 3)],
        lambda m, x: sum(row for row in m.inner(x)[x[:, 0] > -9]),
        lambda m, x: sum(row for row in m.inner(x)[torch.where(x[:, 0] > -9)]),
        lambda m, x: sum(row for row in torch.unique(x)) * m.inner(x),
        lambda m, x: sum(row for row in torch.masked_select(x, x > 0)) * m.inner(x),
        lambda m, x: sum(row for row in Ragged.apply(m.inner(x))),
        lambda m, x: m.inner(x) * float(x.detach().numpy().sum()),
        lambda m, x: m.inner(x) * (2 if m.seen == 0 else 3),
        lambda m, x: m.inner(x) * {0.0: 2}[m.seen.item()],
    ],
    ids="tensor item random contains nonzero mask where unique select function numpy buffer buffer_item".split(),
)
def test_guards_that_look_at_data_are_never_trusted(function):
    assert trust_in(Doing(function)) is Trust.NEVER


def test_the_sizes_that_a_script_makes_are_data():
    class Positive(nn.Module):
        def forward(self, x):
            return x[x[:, 0] > -9]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = Doing(lambda m, x: sum(row for row in m.script(m.inner(x))))
        model.script = torch.jit.script(Positive())

    assert trust_in(model) is Trust.NEVER


@pytest.mark.parametrize(
    ("home", "expected"), [("torch.somewhere", Trust.SAME_SIZES), ("torchlike.ops", Trust.NEVER), ("mine", Trust.NEVER)]
)
def test_the_sizes_that_a_function_of_another_library_makes_are_data(home, expected):
    def some(x):
        return x[x[:, 0] > 0]

    some.__module__ = home
    graph = fx.Graph()
    rows = graph.call_function(some, (graph.placeholder("x"),))
    count = graph.call_function(len, (rows,))
    rows.meta, count.meta = {"shape": (3, 4), "flops": 0}, {"flops": 0}
    graph.call_function(guard, (count, 3, ""))
    graph.output((rows,))

    assert trust(graph) is expected


def test_a_guard_on_a_number_that_no_node_makes_looks_at_no_data():
    graph = fx.Graph()
    graph.call_function(guard, (3, 3, ""))
    graph.output((graph.placeholder("x"),))

    assert trust(graph) is Trust.SAME_SIZES
