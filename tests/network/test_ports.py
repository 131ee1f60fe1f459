"""Names of a module's inputs and outputs."""

import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg


def test_modules_that_take_any_name_and_compiled_ones_are_given_their_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, **values):
            return self.layer(sum(values.values()))

    net = dg.Network().add("s", Sum(), loss=F.mse_loss)
    net.add("c", torch.compile(nn.Linear(6, 3), backend="eager"), loss=F.mse_loss)
    x = torch.ones(2, 6)

    net.tick({"s.one": x, "s.two": x, "c.input": x}, {"s": torch.ones(2, 3)})
    out = net.eval().tick({"s.one": x, "s.two": x, "c.input": x}).outputs

    assert torch.equal(out["s"]["output"], net.agents["s"].module.layer(2 * x))
    assert net.inputs == ["c.input"]
