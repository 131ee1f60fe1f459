"""Which graph is kept for which calls, and when graphs are forgotten."""

import random

import pytest
import torch
from kit.models import CLASSES, CONDITION, Chain, Skipping, X
from torch import nn

import dnigraph as dg
from dnigraph.decoupled import on_graphs
from dnigraph.decoupled.cache import Cache


@pytest.fixture
def captures(monkeypatch):
    """The calls of the capture ladder after the example's."""
    calls = []

    def counted(*args):
        calls.append(args)
        return capture(*args)

    capture = on_graphs.capture
    monkeypatch.setattr(on_graphs, "capture", counted)
    return calls


def test_that_no_graph_can_stand_for_a_kind_of_call_is_found_out_once(captures):
    class OnlyInEval(Skipping):
        def forward(self, x):
            return super().forward(x) * (1 if self.training else random.random())

    dm = dg.decouple(OnlyInEval(), "b", (X,), condition=CONDITION, check=False).eval()

    for _ in range(3):
        dm(X)
        dm.prepare(X)

    assert len(captures) == 1


def test_decouple_captures_both_modes_where_it_checks(captures):
    dm = dg.decouple(Chain(), "bn", (torch.randn(4, 6),), condition=CONDITION)

    dm.eval()(torch.randn(4, 6))

    assert len(captures) == 1  # that of eval mode; that of train mode is the example's


def test_each_kind_of_call_is_captured_once(captures):
    dm = dg.decouple(Skipping(), "b", (X,), boundary="oracle")
    captures.clear()

    for _ in range(2):
        dm(X)
        dm(X[:3])
        dm(X.clone().requires_grad_())
        with torch.no_grad():
            dm(X)

    assert len(captures) == 2  # an input that learns, and grad mode off; another batch size is the same kind


def test_a_replaced_module_makes_all_graphs_forgotten(captures):
    model = Skipping()
    dm = dg.decouple(model, "b", (X,), boundary="oracle")
    captures.clear()

    model.c = nn.Linear(4, CLASSES)

    assert torch.equal(dm(X), model(X))
    assert dm.c is model.c
    assert len(captures) == 1


def test_calls_are_told_apart_by_structure_type_and_plain_values():
    cache = Cache(nn.Linear(4, 4), whole_arguments=False)
    calls = [(X,), (X.double(),), (X, 1), (X, 2), ([X],), ({"x": X},), (X[0],)]

    cache.model.forward = lambda *args: None
    entries = [cache.find(args, {})[0] for args in calls]

    assert len({id(entry) for entry in entries}) == len(calls)
    assert all(cache.find(args, {})[0] is entry for args, entry in zip(calls, entries, strict=True))
    assert cache.find((X[:2],), {})[0] is entries[0]
