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

        def visit(self, value, seen):
            return dg.boundaries.Visit((value,), (torch.ones_like(value),), lambda target: (None,))

    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=1, boundary=lambda spec, context, head: Own(spec, context))
    before = net.agents["a"].module.weight.clone()

    net.tick(torch.ones(2, 6), torch.ones(2, 3), ends=True)

    assert not torch.equal(before, net.agents["a"].module.weight)


class Mine(dg.Boundary):
    """A user's own estimate: a linear head that starts at zero."""

    kind = "mine"
    waits = False

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.head = nn.Linear(spec.width, spec.width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def visit(self, value, seen):
        estimate = self.head(value.detach())
        now = estimate.detach()
        return dg.Visit((value, estimate), (now, None), lambda t: (None, None if t is None else now - t))


class Auxiliary(Mine):
    """A loss of its own, whose gradient is known at once."""

    def visit(self, value, seen):
        loss = self.head(value).square().mean() + self.head.bias.sum()
        return dg.Visit((value, loss), (None, torch.ones_like(loss)), lambda t: (None, None))


@pytest.mark.parametrize("delay", [0, 1, 2])
@pytest.mark.parametrize("kind", [Mine, Auxiliary])
def test_the_weights_of_a_boundary_of_the_users_own_learn_over_any_delay(kind, delay):
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=delay, boundary=lambda spec, context, head: kind(spec, context))

    for _ in range(delay + 2):
        net.tick(torch.ones(2, 6), torch.ones(2, 3))

    (boundary,) = net.boundaries.values()
    assert boundary.head.bias.any()
    assert all(p.grad is None for p in boundary.parameters())


def test_an_answer_that_is_under_way_when_a_tick_fails_is_heard():
    def fail(tick):
        raise ValueError("not today")

    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 6), loss=F.mse_loss)
    net.add("c", nn.Linear(6, 3), loss=F.mse_loss).connect("a.output", "c.input")
    given = {"a.input": torch.ones(2, 6), "b.input": torch.ones(2, 6)}, {"b": torch.ones(2, 6), "c": torch.ones(2, 3)}
    net.tick(*given)
    actors = net.running.actors
    actors["b"].end = fail  # after c has answered a

    with pytest.raises(ValueError, match="not today"):
        net.tick(*given)

    assert actors["a"].outboxes[0].sent == {}
