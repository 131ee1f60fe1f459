"""Agents and links as the user describes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg


def test_arguments_of_agents_and_links_that_do_not_fit_are_named():
    net = dg.Network()
    with pytest.raises(dg.NetworkError, match=r"clip=-1"):
        net.add("a", nn.Linear(2, 2), clip=-1)
    with pytest.raises(dg.NetworkError, match=r"outputs=\['x', 'x'\]"):
        net.add("a", nn.Linear(2, 2), outputs=["x", "x"])
    with pytest.raises(dg.NetworkError) as caught:
        net.connect(1, ["a.x", 3], boundary="dnl", head="hh", initial=(5.5,))

    for words in ("1: an output is called", "3: an input is called", "boundary='dnl'", "head='hh'", "initial=(5.5,)"):
        assert words in str(caught.value)
    net.add("a", nn.Linear(2, 2), outputs="mean", loss=F.mse_loss)
    assert "mean" in net.tick(torch.ones(3, 2), torch.ones(3, 2)).outputs["a"]
