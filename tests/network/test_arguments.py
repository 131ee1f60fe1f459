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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": torch.optim.SGD([torch.ones(1)], 0.1)}, "not a SGD that is made already"),
        ({"optimizer": {"a": torch.optim.SGD}}, "give each agent its own"),
        ({"optimizer": 3}, "optimizer=3"),
        ({"condition": 10}, "condition=10"),
        ({"condition": "label"}, "condition='label'"),
        ({"seed": "abc"}, "seed='abc'"),
        ({"seed": None}, "seed=None"),
        ({"log": "run.json"}, "log='run.json'"),
    ],
    ids=str,
)
def test_arguments_of_a_network_that_do_not_fit_are_named(options, words):
    with pytest.raises(dg.NetworkError, match=words):
        dg.Network(**options)
    with pytest.raises(dg.NetworkError) as caught:
        dg.Network(seed=1.5, log=3, condition=())

    assert len(caught.value.problems) == 3


def test_odd_choices_for_a_link_are_named():
    with pytest.raises(dg.NetworkError) as caught:
        dg.Network().connect("a.x", "b.x", boundary=3, head=4.5, condition=10, synthetic=7, initial=2.5)

    for words in ("boundary=3", "head=4.5", "condition=10", "synthetic=7", "initial=2.5"):
        assert words in str(caught.value)


def test_an_agents_loss_that_is_a_class_is_named():
    with pytest.raises(dg.NetworkError, match=r"loss=MSELoss is a class: make one"):
        dg.Network().add("a", nn.Linear(2, 2), loss=nn.MSELoss)
