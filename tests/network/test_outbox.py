"""The sender's end of a link: what comes back for a message, and what its boundary learns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.networks import batches, chain, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_the_head_learns_only_when_its_receiver_does():
    net, _ = chain()
    (x, y), *_ = batches(1)
    net.agents["f1"].p_update = 1e-9

    net.tick(x, y)
    before = weights(net.boundaries["f0.output → f1.input"])
    net.tick(x, y)

    assert same(before, weights(net.boundaries["f0.output → f1.input"]))


def test_nothing_comes_back_for_what_nobody_will_read():
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.connect("a.output", "b.input", delay=1)
    (x, y), *_ = batches(1)
    for _ in range(5):
        net.tick({"a.input": x}, {"b": y})
    going = copy.deepcopy(net)
    before = net.agents["a"].module.weight.clone()

    net.tick({"a.input": x}, {"b": y}, ends=True)
    going.tick({"a.input": x}, {"b": y})

    assert torch.equal(net.agents["a"].module.weight, before)
    assert not torch.equal(going.agents["a"].module.weight, before)


def test_a_boundary_with_a_gradient_of_its_own_gives_it_also_where_nobody_reads():
    class Own(dg.Boundary):
        kind = "own"
        waits = False

        def visit(self, value):
            return dg.boundaries.Visit((value,), (torch.ones_like(value),), lambda target: (None,))

    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=1, boundary=lambda spec, context, head: Own(spec, context))
    before = net.agents["a"].module.weight.clone()

    net.tick(torch.ones(2, 6), torch.ones(2, 3), ends=True)

    assert not torch.equal(before, net.agents["a"].module.weight)
