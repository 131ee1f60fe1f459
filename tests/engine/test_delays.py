"""The graph of a network, with the delays that were decided."""

import torch.nn.functional as F
from torch import nn

import dnigraph as dg


def test_the_graph_has_a_node_for_each_agent_and_an_edge_for_each_receiver():
    net = dg.Network().add("a", nn.Linear(2, 2)).add("b", nn.Linear(2, 2)).add("c", nn.Linear(2, 2), loss=F.mse_loss)
    net.connect("x", "a.input")
    net.connect("a.output", ["b.input", "c.input"], delay=2)
    net.connect("b.output", "b.other")

    graph = net.graph

    assert dict(graph.nodes(data="agent")) == net.agents
    assert set(graph.edges(keys=True)) == {("a", "b", "b.input"), ("a", "c", "c.input"), ("b", "b", "b.other")}
    assert graph.edges["a", "c", "c.input"] == {"source": "output", "sink": "input", "delay": 2, "link": net.links[1]}
    assert graph.edges["b", "b", "b.other"]["delay"] == 1  # decided: it closes a circle
