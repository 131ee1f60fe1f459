"""What a tick is given: inputs, targets and labels by name."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, batches, chain, everything, fork, same, sgd, squared, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_a_tick_without_an_input_fails_before_anybody_fires():
    net, x, targets = fork()
    net.add("d", Cell(), loss=squared)
    inputs = {"a.input": x, "d.x": torch.ones(2, 3), "d.heard": torch.ones(2, 4)}
    net.tick(inputs, targets)
    before, events = everything(net), len(net.log)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.input": x}, targets)

    assert "d.x is needed in tick 1" in str(caught.value) and "d.heard is needed" in str(caught.value)
    assert same(before, everything(net)) and len(net.log) == events and net.ticks == 1


@pytest.mark.parametrize("threads", [False, True])
def test_an_input_of_the_network_must_have_come(threads):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=F.mse_loss).connect("x", "a.input")
    net.validate(torch.ones(2, 6))
    there, lacking = ({"x": torch.ones(2, 6)}, torch.ones(2, 3)), ({}, torch.ones(2, 3))

    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([lacking, there], threads=threads)
    net.run([there, lacking], threads=threads)  # the latest, again
    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([(*there, None, True), lacking], threads=threads)


def test_a_label_that_is_missing_is_asked_for_in_words_of_networks():
    net, _ = chain(condition=dg.one_hot(3))
    (x, y), *_ = batches(1)
    net.tick(x, y)
    before = weights(net)

    with pytest.raises(dg.NetworkError, match=r"in tick 1 there is none for f0: .*label=\{'f0': ...\}"):
        net.tick(x)

    assert net.ticks == 1 and same(before, weights(net))  # nobody has run


def test_the_label_of_one_agent_is_not_anothers_because_it_came_alone():
    net = dg.Network(condition=dg.one_hot(3))
    net.add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.add("c", nn.Linear(6, 3), every=2, loss=F.cross_entropy)
    net.connect("a.output", ["b.input", "c.input"])

    with pytest.raises(dg.NetworkError, match="there is none for a"):
        net.tick(torch.ones(2, 6), {"b": torch.tensor([0, 1])})
