"""What nodes cost."""

import torch
from kit.partition_programs import captured
from torch import nn

from dnigraph.passes.cuts.candidates import costs
from dnigraph.passes.graph.facts import facts_of


def test_views_cost_nothing_and_what_changes_in_place_costs_its_size():
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x):
            return self.fc(x).view(-1, 3).relu_().transpose(0, 1)

    found = captured(Views(), torch.randn(2, 4))
    spent = dict(zip((node.name for node in found.graph.nodes), costs(facts_of(found.graph), "flops"), strict=False))

    assert spent == {"x": 0, "fc": 2 * 2 * 4 * 6 + 12, "view": 0, "relu_": 12, "transpose": 0}
