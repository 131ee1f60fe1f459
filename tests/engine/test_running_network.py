"""What is made before the first tick: boundaries, heads, optimisers."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import same, sgd, weights
from torch import nn

import dnigraph as dg


def test_a_label_for_messages_without_a_batch_is_refused():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return self.layer(x).mean(0)

    net = (
        dg.Network(optimizer=sgd).add("a", Mean()).add("b", nn.Linear(5, 5), loss=lambda made, y: made.square().mean())
    )
    net.connect("a.output", "b.input", condition=dg.one_hot(3))

    with pytest.raises(dg.NetworkError, match=r"the message is \[5\], and the batch has 4"):
        net.tick(torch.ones(4, 6), torch.ones(4))


def test_in_lock_step_heads_hold_their_graphs_no_longer_than_in_local():
    x, y = torch.randn(64, 32), torch.arange(64) % 3

    def peak(run_of):
        torch.manual_seed(0)
        layers = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)], nn.Linear(32, 3))
        dm = dg.decouple(layers, [f"{i}" for i in range(7)], (x,), condition=dg.one_hot(3))
        step = run_of(dm)
        step()
        with dg.saved_bytes(excluding=[*dm.parameters(), x, y]) as count:
            step()
        return count.peak

    def local(dm):
        run = dg.Local(dm, loss=F.cross_entropy, optimizer=sgd)
        return lambda: run.step(x, target=y)

    def network(dm):
        net = dm.network(loss=F.cross_entropy, optimizer=sgd)
        return lambda: net.tick(x, y)

    assert peak(local) == peak(network) > 0


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("boundary", ["dni", "local-loss", "oracle", "dfa"])
def test_gradients_that_the_users_own_loop_has_left_move_nothing(boundary, late):
    x, y = torch.randn(8, 6), torch.arange(8) % 3

    def trained(left):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
        dm = dg.decouple(model, "1", (x,), boundary=boundary, condition=dg.one_hot(3))
        net = dm.network(loss=F.cross_entropy, optimizer=sgd, late=late)
        for _ in range(4):
            if left:
                for parameter in dm.parameters():
                    parameter.grad = torch.ones_like(parameter)
            net.tick(x, y)
        return weights(dm)

    assert same(trained(left=False), trained(left=True))
