"""How long each node of a graph takes."""

import time

import torch
from kit.replay import Doing
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.capture.profile import node_seconds


def sleeps(model, x):
    return torch.dropout(model.outer(Slow.apply(model.inner(x))), 0.5, True) * model.seen.add_(1)


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        time.sleep(0.02)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_timing_leaves_the_model_and_the_random_numbers_as_they_were():
    model, x = Doing(sleeps), torch.randn(4, 4)
    captured = capture(model, (x,), {})
    before = [t.clone() for t in (*model.buffers(), torch.get_rng_state())]

    node_seconds(captured, model, [x], repeats=2)

    assert all(map(torch.equal, before, (*model.buffers(), torch.get_rng_state())))
    assert max(captured.graph.nodes, key=lambda node: node.meta["seconds"]).meta["seconds"] > 0.019


def test_each_timed_run_begins_from_the_same():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.fc(x) if self.calls < 3 else x  # a guard, which misses in the third run

    model, x = Counts(), torch.randn(2, 4)

    node_seconds(capture(model, (x,), {}), model, [x], repeats=5)

    assert model.calls == 0
