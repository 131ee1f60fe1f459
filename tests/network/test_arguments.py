"""Agents and links as the user describes them."""

import pytest
import torch
import torch.nn.functional as F
from kit.titles import titled
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
    ids=titled,
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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a.b"}, "'a.b' is no name for an agent: names are words without a dot"),
        ({"name": ""}, "'' is no name for an agent"),
        ({"name": 3}, "3 is no name for an agent"),
        ({"name": "there"}, "there is an agent 'there' already"),
        ({"module": torch.tanh}, "a is a builtin_function_or_method, not an nn.Module"),
        ({"p_update": 1.01}, "a: p_update=1.01 (a number from 0 to 1)"),
        ({"p_update": -0.01}, "a: p_update=-0.01 (a number from 0 to 1)"),
        ({"p_update": True}, "a: p_update=True (a number from 0 to 1)"),
        ({"p_update": "often"}, "a: p_update='often' (a number from 0 to 1)"),
        ({"every": 0}, "a: every=0 (a whole number from 1 on)"),
        ({"phase": -1}, "a: phase=-1 (a whole number from 0 on)"),
        ({"clip": 0}, "a: clip=0 (the largest norm of a gradient, above 0)"),
        ({"clip": True}, "a: clip=True (the largest norm"),
        ({"outputs": []}, "a: outputs=[] (a name for each, all different)"),
        ({"outputs": 3}, "a: outputs=3 (a name for each"),
    ],
    ids=titled,
)
def test_an_argument_of_an_agent_that_does_not_fit_is_the_only_one_named(options, words):
    net = dg.Network().add("there", nn.Linear(2, 2))

    with pytest.raises(dg.NetworkError, match="the agent does not fit") as caught:
        net.add(**{"name": "a", "module": nn.Linear(2, 2)} | options)

    assert len(caught.value.problems) == 1 and words in caught.value.problems[0]
    assert list(net.agents) == ["there"]


@pytest.mark.parametrize("p_update", [0, 1, 0.5])
def test_a_share_of_updates_lies_from_none_to_all(p_update):
    assert dg.Network().add("a", nn.Linear(2, 2), p_update=p_update).agents["a"].p_update == p_update


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": -1}, "delay=-1 (a whole number from 0 on)"),
        ({"delay": 1.0}, "delay=1.0 (a whole number from 0 on)"),
        ({"delay": True}, "delay=True (a whole number from 0 on)"),
        ({"sink": []}, "'a.x' is connected to nothing"),
        ({"sink": "b"}, "'b': an input is called 'agent.input'"),
        ({"source": ""}, "'': an output is called 'agent.output', an input of the whole network by one word"),
        ({"policy": "lates"}, "there is no policy 'lates'; nearest: latest; say 'latest', 'mean' or dg.stack(n)"),
        ({"policy": 3}, "there is no policy 3; say 'latest'"),
    ],
    ids=titled,
)
def test_an_argument_of_a_link_that_does_not_fit_is_the_only_one_named(options, words):
    net = dg.Network()

    with pytest.raises(dg.NetworkError, match="the link does not fit") as caught:
        net.connect(**{"source": "a.x", "sink": "b.x"} | options)

    assert len(caught.value.problems) == 1 and words in caught.value.problems[0]
    assert net.links == []
