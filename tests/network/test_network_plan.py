"""A network as a picture: every link is there with its boundary, also where it goes back."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, squared
from torch import nn

import dnigraph as dg

X, Y = torch.ones(4, 3), torch.zeros(4, dtype=torch.long)


def ring(back=("a.heard",), run=True):
    torch.manual_seed(0)
    net = dg.Network(condition=dg.one_hot(3)).add("a", Cell()).add("b", Cell(heard=5, said=4), every=2, loss=squared)
    net.add("c", nn.Linear(4, 3), loss=F.cross_entropy)
    net.connect("a.said", "b.heard").connect("b.said", list(back), delay=1, initial=(4,))
    if "c.input" not in back:
        net.connect("x", "c.input")
    if run:
        given = {"a.x": X, "b.x": X, **({} if "c.input" in back else {"x": torch.ones(4, 4)})}
        net.tick(given, {"b": torch.ones(4, 2), "c": Y}, label=Y)
    return net


@pytest.mark.parametrize("back", [("a.heard",), ("a.heard", "c.input")], ids=["back", "back and on"])
def test_the_plan_counts_the_heads_and_the_links_of_a_circle(back):
    net = ring(back)

    heads = sum(boundary.head_parameters for boundary in net.boundaries.values())
    assert sum(crossing.head_parameters for crossing in net.plan.crossings) == heads
    assert f"{heads} parameters in heads" in str(net.plan)
    assert f"cut at {1 + len(back)} edges" in str(net.plan)
    link = next(c for c in net.plan.crossings if c.name == "b.said → a.heard (delay 1)")
    assert (link.producer, link.boundary, link.shape, link.bytes) == ("b, every 2 from 1", "dni", (4, 4), 64)
    assert link.consumers == (("c",) if "c.input" in back else ())


@pytest.mark.parametrize("back", [("a.heard",), ("a.heard", "c.input")], ids=["back", "back and on"])
@pytest.mark.parametrize("run", [True, False], ids=["run", "not run"])
def test_a_link_that_goes_back_is_drawn_with_its_boundary_and_comes_in_at_its_reader(back, run, tmp_path):
    net = ring(back, run)

    for kind in ("svg", "html", "dot", "mmd"):
        dg.draw(net, tmp_path / f"net.{kind}")

    lines = (tmp_path / "net.mmd").read_text().splitlines()
    box, pill = (line.split("(")[0].split("[")[0].strip() for line in lines if "b.said → a.heard" in line)
    reader = next(line.split("[")[0].strip() for line in lines if '["a<br/>' in line)
    sender = next(line.split("[")[0].strip() for line in lines if '["b, every 2' in line)
    assert f"  {sender} --> {box}" in lines and f"  {pill} --> {reader}" in lines
    if run:
        assert any("dni" in line for line in lines if line.strip().startswith(box + "("))
    assert "b.said → a.heard" in (tmp_path / "net.svg").read_text()


def test_an_agent_that_hears_itself_is_drawn():
    net = dg.Network().add("a", Cell(heard=5), loss=squared).connect("a.said", "a.heard", initial=(5,))

    assert [c.name for c in net.plan.crossings] == ["a.said → a.heard (delay 1)"]
    assert net.plan.notes == ("goes back in a circle: a.said → a.heard (delay 1)",)
