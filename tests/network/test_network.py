"""Networks of agents: what they learn from, what they cost, and what runs aside."""

import copy
import gc
import sys

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, Collect, Late, batches, chain, circle, everything, given, same, sgd, squared, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_an_oracle_network_without_delays_is_backprop():
    net, layers = chain(boundary="oracle")
    plain = copy.deepcopy(layers)
    optimizer = sgd(plain.parameters())

    for x, y in batches(5):
        net.tick(x, y)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()

    assert same(weights(layers), weights(plain))


def test_a_circle_of_oracles_is_backprop_through_the_unrolled_network():
    torch.manual_seed(0)
    a, b = Cell(), Cell(heard=5, said=4)
    plain = copy.deepcopy(nn.ModuleList([a, b]))
    net = dg.Network(optimizer=sgd)
    net.add("a", a, loss=squared).add("b", b, loss=squared)
    net.connect("a.said", "b.heard", boundary="oracle", delay=0)
    net.connect("b.said", "a.heard", boundary="oracle", delay=1, initial=(4,))
    xs, targets = torch.randn(6, 7, 3), torch.randn(6, 7, 2)

    for t in range(6):
        net.tick({"a.x": xs[t], "b.x": xs[t]}, {"a": targets[t], "b": targets[t]}, ends=t == 5)

    optimizer, heard, loss = sgd(plain.parameters()), torch.zeros(7, 4), 0.0
    for t in range(6):
        first = plain[0](xs[t], heard)
        second = plain[1](xs[t], first["said"])
        heard = second["said"]
        loss = loss + squared(first, targets[t]) + squared(second, targets[t])
    loss.backward()
    optimizer.step()
    for ours, theirs in zip((*a.parameters(), *b.parameters()), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)  # sums over time are added in another order


class Loud(dg.Boundary):
    """A head that is wrong on purpose: it says one everywhere, and never learns."""

    kind = "loud"

    def visit(self, value, seen):
        return dg.Visit((value,), (torch.ones_like(value),), lambda target: (None,))


@pytest.mark.parametrize("wrong", range(3))
def test_a_wrong_head_is_felt_below_it_and_by_nobody_above(wrong):
    def chain(boundaries):
        torch.manual_seed(0)
        net = dg.Network(optimizer=Collect)
        for i in range(4):
            net.add(f"a{i}", nn.Linear(3, 3).double(), loss=nn.functional.mse_loss if i == 3 else None)
        for i in range(3):
            net.connect(f"a{i}.output", f"a{i + 1}.input", boundary=boundaries[i])
        net.tick(torch.ones(4, 3).double(), torch.zeros(4, 3).double())
        return [
            actor.group.optimizer.state[p]["sum"]
            for actor in net.running.actors.values()
            for p in actor.group.parameters
        ]

    true = chain(["oracle"] * 3)
    lied_to = chain(["oracle" if i != wrong else lambda spec, context, head: Loud(spec, context) for i in range(3)])

    felt = [not torch.allclose(a, b) for a, b in zip(true, lied_to, strict=True)]
    assert felt == [i <= wrong for i in range(4) for _ in ("weight", "bias")]


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = []
    for seed in (4, 4, 5):
        net = circle(seed=seed)
        net.run(given(15))
        runs.append(everything(net))

    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("one", [{"x": 1}, torch.ones(2), (1, 2, 3, True, 5)])
def test_run_says_what_it_takes(one):
    net, _ = chain()

    with pytest.raises(dg.NetworkError, match=r"a tuple \(inputs, targets, label, ends\) for each tick"):
        net.run([one])


def test_what_runs_aside_leaves_no_trace():
    net = circle()
    net.run(given(5))
    before, ticks = [t.clone() for t in everything(net)], net.ticks

    with net.aside():
        found = net.run(given(4, start=9))

    assert len(found[3].losses) > 0
    assert same(before, everything(net)) and net.ticks == ticks
    other = circle()
    other.run(given(5))
    other.run(given(5, start=2))
    net.run(given(5, start=2))
    assert same(everything(net), everything(other))


def test_what_ran_aside_before_the_first_tick_leaves_nothing():
    def net():
        torch.manual_seed(0)
        found = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
        found.connect("x", ["a.input", "b.x"])
        found.connect("a.output", "b.heard", delay=1)
        return found

    one, other = net(), net()
    with one.aside():
        one.tick(torch.ones(5, 6))
        one.tick(torch.ones(5, 6))

    for _ in range(3):
        found, wanted = (n.tick(torch.ones(2, 6), torch.ones(2, 3)).losses["b"] for n in (one, other))
        assert torch.equal(found, wanted)


def test_aside_leaves_what_the_user_froze_in_eval_mode():
    net, layers = chain()
    net.run(batches(1))
    layers[0][1].eval()

    with net.aside():
        net.run(batches(1))

    assert [layer.training for layer in layers[0]] == [True, False]


def test_a_copy_of_a_network_goes_on_as_the_network_does():
    net, _ = chain(condition=dg.one_hot(3))
    for x, y in batches(4):
        net.tick(x, y)
    other = copy.deepcopy(net)

    for x, y in batches(4):
        net.tick(x, y)
        other.tick(x, y)

    assert same(weights(net), weights(other))


def test_a_network_that_waits_for_true_gradients_cannot_be_copied():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=2, boundary="oracle")
    net.tick(torch.ones(2, 6), torch.ones(2, 3))

    with pytest.raises(dg.NetworkError, match="cannot be copied now"):
        copy.deepcopy(net)


def calls_of_a_tick(agents):
    """How many Python calls one tick takes in a ring of so many agents, three links each."""
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.1))
    for i in range(agents):
        net.add(f"n{i}", Adder(), loss=F.mse_loss if i % 10 == 0 else None)
    for i in range(agents):
        for step, port in enumerate("abc", 1):
            net.connect(f"n{i}.output", f"n{(i + step) % agents}.{port}", delay=1, head="linear", initial=(3,))
    targets = {f"n{i}": torch.ones(2, 3) for i in range(0, agents, 10)}
    inputs = {f"n{i}.x": torch.ones(2, 3) for i in range(agents)}
    for _ in range(3):
        net.tick(inputs, targets)
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    gc.collect()
    gc.disable()  # what is collected in between, of other tests too, calls functions as well
    sys.setprofile(note)
    try:
        net.tick(inputs, targets)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, a, b, c):
        return self.weight * (x + a + b + c)


def test_a_tick_costs_as_much_per_link_in_a_network_of_a_thousand_agents():
    some, many = calls_of_a_tick(100), calls_of_a_tick(1000)

    assert 9.5 < many / some < 10.5
