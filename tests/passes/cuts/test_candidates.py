"""What nodes cost."""

import pytest
import torch
import torch.nn.functional as F
from kit.partition_programs import captured
from torch import nn

from dnigraph.passes.cuts.candidates import Line, costs
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


@pytest.mark.parametrize("kind", ["flops", "memory"])
def test_what_is_made_of_weights_is_paid_for_where_it_is_first_used(kind):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            weight = self.b.weight @ self.c.weight  # before anything of the line
            return F.linear(self.a(x), weight) + self.c(x)

    graph = captured(Tied(), torch.randn(2, 4)).graph
    line, spent = Line(graph, kind), costs(facts_of(graph), kind)

    assert line.spent[-1] == sum(spent)  # nothing is lost
    assert line.spent[line.nodes[0]] == 0  # and nothing is paid before the line begins
    product = next(x for x, fact in enumerate(line.facts) if fact.name == "matmul")
    first_use = min(line.facts[product].users)
    assert line.spent[first_use + 1] - line.spent[first_use] == spent[first_use] + spent[product] > spent[first_use]
