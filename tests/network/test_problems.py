"""What is wrong with the wiring, seen before the first tick."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg


@pytest.mark.parametrize(
    ("source", "sink", "words"),
    [
        ("encode.output", "b.input", "encode.output: there is no agent 'encode'; nearest: encoder"),
        ("encoder.output", "c.input", "c.input: there is no agent 'c'"),
    ],
)
def test_a_link_to_an_agent_that_is_not_there_is_named_with_the_nearest(source, sink, words):
    net = dg.Network().add("encoder", nn.Linear(2, 2), loss=F.mse_loss).add("b", nn.Linear(2, 2), loss=F.mse_loss)
    net.connect(source, sink)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"encoder.input": torch.ones(2, 2), "b.input": torch.ones(2, 2)})

    assert any(problem.startswith(words) for problem in caught.value.problems)
