"""Names of a module's inputs and outputs."""

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg
from dnigraph.engine.description.ports import outputs_of


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


@dataclasses.dataclass
class Made:
    said: torch.Tensor
    guess: torch.Tensor


class Pair(NamedTuple):
    first: int
    second: int


@pytest.mark.parametrize(
    ("returned", "names", "outputs"),
    [
        (Made(1, 2), None, {"said": 1, "guess": 2}),
        (Pair(1, 2), None, {"first": 1, "second": 2}),
        (Pair(1, 2), ("a", "b"), {"a": 1, "b": 2}),
        ((1, 2), None, {"0": 1, "1": 2}),
        ({3: 1}, None, {"3": 1}),
        (1, None, {"output": 1}),
        (1, ("mean",), {"mean": 1}),
        (Made, None, {"output": Made}),
    ],
    ids=str,
)
def test_outputs_have_the_names_that_the_module_or_the_user_gives(returned, names, outputs):
    assert outputs_of(returned, names) == outputs
