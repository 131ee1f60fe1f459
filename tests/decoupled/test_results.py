"""Results and arguments of any kind: a decoupled model returns what the model returns, and leaves what it is given."""

import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

import dnigraph as dg
from dnigraph.passes.graph.equality import equal

X = torch.linspace(-1, 1, 24).reshape(4, 6)


class Log:
    def __init__(self, *lines):
        self.lines = list(lines)


SHARED = Log("one for all")


class Returning(nn.Module):
    def __init__(self, more):
        super().__init__()
        self.a, self.b, self.more = nn.Linear(6, 6), nn.Linear(6, 3), more
        self.log = Log("mine")

    def forward(self, x):
        h = self.a(x).tanh()
        return self.b(h), self.more(self, h)


def decoupled(model, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dg.decouple(model, "a", args, boundary="oracle", **options)


FRESH = {
    "array": lambda m, h: h.detach().numpy(),
    "constant array": lambda m, h: np.arange(3),
    "object": lambda m, h: Log("ran"),
    "object with a size": lambda m, h: Log(h.shape[0]),
    "object with an array": lambda m, h: Log(h.detach().numpy()),
    "exception": lambda m, h: ValueError("none", 3),
    "exception with a tensor": lambda m, h: ValueError(h),
    "set": lambda m, h: {1, 2},
    "bytearray": lambda m, h: bytearray(b"ab"),
    "namespace": lambda m, h: types.SimpleNamespace(steps=[1]),
    "values of a dict": lambda m, h: {"a": h, "b": 1}.values(),
    "items of a dict": lambda m, h: {"a": h}.items(),
    "method": lambda m, h: m.b.extra_repr,
    "function of a tensor": lambda m, h: lambda: h,
    "function": lambda m, h: lambda: 1,
    "zip": lambda m, h: zip([1], [h], strict=True),
    "generator": lambda m, h: (row for row in h),
    "iterator": lambda m, h: iter([1, 2]),
}


@pytest.mark.parametrize("more", FRESH.values(), ids=FRESH)
def test_what_the_model_makes_in_every_call_is_made_in_every_call(more):
    torch.manual_seed(0)
    model = Returning(more)

    dm = decoupled(model, X)

    for x in (X, X + 1, X[:3]):
        found, wanted = dm(x), model(x)
        assert equal(list(found), list(wanted))
    if not isinstance(wanted[1], types.FunctionType):
        assert dm(X)[1] is not dm(X)[1]


def test_what_the_caller_does_to_a_result_is_not_in_the_next_one():
    dm = decoupled(Returning(lambda m, h: ({1}, Log("ran"))), X)

    found, log = dm(X)[1]
    found.add(2)
    log.lines.append("more")

    assert dm(X)[1][0] == {1} and dm(X)[1][1].lines == ["ran"]


@pytest.mark.parametrize("more", [lambda m, h: m.log, lambda m, h: SHARED], ids=["of the model", "global"])
def test_what_is_there_before_the_call_stays_the_object_that_it_is(more):
    model = Returning(more)

    assert decoupled(model, X)(X)[1] is model(X)[1]


def test_a_generator_alone_is_refused_with_the_way_out():
    class Lazy(Returning):
        def forward(self, x):
            return (self.b(self.a(row)) for row in x)

    with pytest.raises(dg.CaptureError, match="a generator computes only when it is asked: return a list"):
        decoupled(Lazy(None), X)


class Leaf:
    """A node of a tree that knows its parent, and holds its state while the model runs."""

    def __init__(self, word, *children):
        self.word, self.children, self.parent, self.state = word, list(children), None, None
        for child in children:
            child.parent = self


class OverTrees(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def at(self, node):
        node.state = self.a(self.words(torch.tensor([node.word])) + sum(map(self.at, node.children))).tanh()
        return node.state

    def forward(self, tree):
        return self.b(self.at(tree))


def test_trees_that_know_their_parents_run_on_hooks_and_are_left_as_they_were():
    leaf = tree = Leaf(4)
    for word in range(9):
        tree = Leaf(word, tree)
    model = OverTrees()

    dm = decoupled(model, tree)

    assert dm.plan.capture == "hooks"
    assert tree.state is None and leaf.state is None
    other = Leaf(5, Leaf(6))
    assert torch.equal(dm(other), model(other))
    assert other.state is not None and torch.equal(dm(other), model(other))  # a tree that has states


def test_trees_of_states_are_arguments_and_results():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, tree):
            child = Leaf(0)
            child.state = self.b(self.a(tree.children[0].state).tanh())
            return Leaf(0, child)

    tree = Leaf(1, Leaf(2))
    tree.children[0].state = X
    model = Sum()

    dm = decoupled(model, tree)
    found, wanted = dm(tree), model(tree)

    assert dm.plan.capture == "record"
    assert found.children[0].parent is found
    assert torch.equal(found.children[0].state, wanted.children[0].state)


def test_a_distribution_whose_transform_remembers_itself_is_a_result():
    class Policy(Returning):
        def forward(self, x):
            law = TransformedDistribution(Normal(self.b(self.a(x).tanh()), 1.0), [TanhTransform(cache_size=1)])
            action = law.rsample()
            return law, action, law.log_prob(action)

    torch.manual_seed(0)
    dm = decoupled(Policy(None), X)

    law, action, density = dm(X)
    assert law.transforms[0].inv.inv is law.transforms[0]
    assert torch.equal(law.log_prob(action), density)
