"""What a receiver reads if its clock differs from the sender's, and how the gradient is divided."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.networks import batches, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


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


def test_the_mean_is_that_of_all_messages_however_slow_the_reader():
    net = dg.Network().add("a", nn.Identity()).add("b", nn.Linear(6, 3), every=100, loss=F.mse_loss)
    net.connect("a.output", "b.input", policy="mean")
    seen, sent = [], torch.randn(100, 2, 6)
    net.agents["b"].module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input"]), with_kwargs=True)

    net.run([(x, torch.zeros(2, 3)) for x in sent])

    torch.testing.assert_close(seen[-1].detach(), sent.mean(0))


@pytest.mark.parametrize("policy", ["mean", dg.stack(2)])
def test_messages_of_two_shapes_make_no_mean_and_no_stack(policy):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6))
    net.add("b", nn.Sequential(nn.Flatten(0, -2), nn.Linear(6, 3)), every=2, loss=lambda made, y: made.square().mean())
    net.connect("a.output", "b.input", policy=policy)
    net.tick({"a.input": torch.ones(4, 6)}, {"b": torch.ones(())})

    with pytest.raises(
        dg.NetworkError, match=r"b.input reads the .* of what a.output sent, and that is \[4, 6\] in tick 0"
    ):
        net.tick({"a.input": torch.ones(2, 6)}, {"b": torch.ones(())})
