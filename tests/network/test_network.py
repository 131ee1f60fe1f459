"""Networks of agents: what they learn from, when, and from which message."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import ZOO, cut_up, labels, loss_of
from kit.networks import Cell, adam, batches, chain, same, sgd, squared, weights
from torch import nn

import dnigraph as dg


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


READ = {
    "latest": lambda one, two: two,
    "mean": lambda one, two: (one + two) / 2,
    "stack": lambda one, two: torch.stack([torch.zeros_like(one), one, two], 1),
}


@pytest.mark.parametrize("policy", READ)
def test_a_slow_reader_gives_each_message_its_share_of_the_gradient(policy):
    torch.manual_seed(0)
    a, b = nn.Linear(6, 4), nn.Sequential(nn.Flatten(), nn.Linear(12 if policy == "stack" else 4, 3))
    plain = copy.deepcopy(nn.ModuleList([a, b]))
    net = dg.Network(optimizer=sgd)
    net.add("a", a).add("b", b, every=2, loss=F.cross_entropy)
    net.connect("a.output", "b.input", policy=dg.stack(3) if policy == "stack" else policy, boundary="oracle")
    (x, _), (x2, y) = batches(2)

    net.tick(x)
    assert same(weights(a), weights(plain[0])), "nobody has learned yet"
    net.tick(x2, {"b": y}, ends=True)

    optimizer = sgd(plain.parameters())
    F.cross_entropy(plain[1](READ[policy](plain[0](x), plain[0](x2))), y).backward()
    optimizer.step()
    for ours, theirs in zip((*a.parameters(), *b.parameters()), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_fast_reader_answers_once_with_the_sum_of_all_its_gradients():
    torch.manual_seed(0)
    a, b = nn.Linear(6, 4), nn.Linear(4, 3)
    plain = copy.deepcopy(a)
    still = copy.deepcopy(b)
    net = dg.Network(optimizer=sgd)
    net.add("a", a, every=3, phase=0)
    net.add("b", b, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    net.connect("a.output", "b.input", boundary="oracle")
    given = list(batches(3))

    for x, y in given:
        assert same(weights(a), weights(plain))
        net.tick(x, {"b": y})

    optimizer = sgd(plain.parameters())
    said = plain(given[0][0])
    sum(F.cross_entropy(still(said), y) for _, y in given).backward()
    optimizer.step()
    for ours, theirs in zip(a.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ZOO)
def test_a_decoupled_model_as_a_network_learns_what_local_learns(name):
    dm, args = cut_up(name, check=False)
    other = copy.deepcopy(dm)
    run, net = dg.Local(dm, loss=loss_of, optimizer=adam), other.network(loss=loss_of, optimizer=adam)
    y, given = labels(len(args[0])), dict(zip(other.plan.inputs, args, strict=True))
    net.validate(given)

    for step in range(3):
        torch.manual_seed(step)  # for dropout
        run.step(*args, target=y)
        torch.manual_seed(step)
        net.tick(given, y)

    assert same(weights(dm.original), weights(other.original))
    assert all(same(weights(b), weights(other.boundaries[k])) for k, b in dm.boundaries.items())
