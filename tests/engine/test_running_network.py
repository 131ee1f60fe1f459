"""What is made before the first tick: boundaries, heads, optimisers."""

import pytest
import torch
from kit.networks import sgd
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
