"""A network as text."""

import torch.nn.functional as F
from torch import nn

import dnigraph as dg


def cells(net, start):
    """The columns of the first line that begins so."""
    (line, *_) = [line for line in str(net).splitlines() if line.strip().startswith(start)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_before_the_first_tick_a_link_shows_the_boundary_that_was_asked_for():
    net = dg.Network().add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("x", "a.input")
    net.connect("a.output", "b.input", delay=2)
    net.connect("a.named", "b.named", boundary="oracle")
    net.connect("a.none", "b.none", boundary=None)
    net.connect("a.made", "b.made", boundary=dg.dni(warm_up=3))

    assert cells(net, "x → ")[1:4] == ["0", "latest", "as it is"]
    assert cells(net, "a.output → ")[1:4] == ["2", "latest", "dni"]
    assert cells(net, "a.named → ")[3] == "oracle"
    assert cells(net, "a.none → ")[3] == "as it is"
    assert cells(net, "a.made → ")[3] == "-"


def test_agents_show_their_clock_their_share_of_updates_and_their_loss():
    net = dg.Network().add("a", nn.Linear(6, 6), p_update=0.25, every=3)
    net.add("b", nn.Linear(6, 3), loss=F.mse_loss).add("c", nn.Linear(6, 3), loss="output")
    net.connect("a.output", "b.input")
    net.pause("b")

    assert cells(net, "a ") == ["a", "Linear", "every 3 from 2", "p = 0.25", "42", "-", "-", "output"]
    assert cells(net, "b ") == ["b", "Linear", "paused", "always", "21", "mse_loss", "input", "-"]
    assert cells(net, "c ")[5] == "output"
    assert str(net).startswith("network: 3 agents, 1 link, tick 0")
