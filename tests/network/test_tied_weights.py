"""Agents that share weights: they are stepped once, with the gradients of all agents."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Collect, Moody, batches, sgd
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def tied_net(optimizer, delay=0, **options):
    """a and c have one weight; b stands between them, and c has the loss."""
    torch.manual_seed(0)
    a, b, c = nn.Linear(6, 6), Moody(), nn.Linear(6, 6)
    c.weight = a.weight
    net = dg.Network(optimizer=optimizer).add("a", a).add("b", b).add("c", c, loss=F.cross_entropy)
    net.connect("a.output", "b.x", delay=delay, **options)
    net.connect("b.output", "c.input", delay=0, **options)
    return net, (a, b, c)


@pytest.mark.parametrize("boundary", ["oracle", dg.dni(warm_up=9), dg.dni(refresh=1)])
def test_true_gradients_are_those_of_backprop(boundary):
    net, layers = tied_net(sgd, boundary=boundary)
    plain = copy.deepcopy(nn.Sequential(*layers))
    optimizer = sgd(list(plain.parameters()))

    for x, y in batches(4):
        net.tick(x, y)
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()

    for own, expected in zip(nn.Sequential(*layers).parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected)


def test_over_a_delay_each_batch_is_stepped_once_with_all_of_its_gradients():
    net, (a, _, c) = tied_net(Collect, delay=1, boundary="oracle")
    total = torch.zeros_like(a.weight)
    heard = []
    for x, y in batches(3):
        net.tick(x, y)
        heard.append(x)
    net.settle()

    # c reads in tick t what a said in t - 1, at first zeros; nothing moved, since the optimiser only collects
    plain = copy.deepcopy((a, net.agents["b"].module, c))
    plain[2].weight = plain[0].weight
    for i, (_, y) in enumerate(batches(3)):
        said = plain[0](heard[i - 1]) if i else torch.zeros(len(y), 6)
        total += torch.autograd.grad(F.cross_entropy(plain[2](plain[1](said)), y), plain[0].weight)[0]
    torch.testing.assert_close(sums(net, c.weight), total)


def test_what_the_failed_tick_had_learned_is_not_in_the_next_step():
    net, (a, b, _) = tied_net(Collect, boundary="silent")
    (x, y), (x2, y2) = batches(2)
    net.validate(x)
    b.bad = True
    with pytest.raises(ValueError, match="not today"):
        net.tick(x, y)
    b.bad = False
    net.tick(x2, y2)

    other, (weight, _, _) = tied_net(Collect, boundary="silent")
    other.tick(x2, y2)
    assert torch.equal(sums(net, a.weight), sums(other, weight.weight))


def sums(net, parameter):
    return net.running.kept.groups["c"].optimizer.state[parameter]["sum"]


def test_a_checkpoint_holds_the_optimiser_of_what_is_shared(tmp_path):
    adam = lambda p: torch.optim.Adam(p, 0.1)  # noqa: E731
    net, (a, _, _) = tied_net(adam, boundary="oracle")
    data = list(batches(4))
    for x, y in data[:2]:
        net.tick(x, y)
    net.save(tmp_path / "net.pt")
    other, (weight, _, _) = tied_net(adam, boundary="oracle")
    other.load(tmp_path / "net.pt", data[0][0])
    for x, y in data[2:]:
        net.tick(x, y)
        other.tick(x, y)

    assert torch.equal(a.weight, weight.weight)
