"""The order of agents, kept up to date link by link."""

import random

import networkx as nx
import pytest

from dnigraph.engine.topological_order import TopologicalOrder


@pytest.mark.parametrize("seed", range(20))
def test_an_order_that_grows_link_by_link_knows_every_way_back(seed):
    chance, names = random.Random(seed), [str(i) for i in range(30)]
    order, graph = TopologicalOrder(names), nx.DiGraph()
    graph.add_nodes_from(names)

    for _ in range(120):
        a, b = chance.choice(names), chance.choice(names)
        way = order.path(b, a)
        assert bool(way) == nx.has_path(graph, b, a)
        if way:
            assert len(way) == len(nx.shortest_path(graph, b, a))
            assert nx.is_path(graph, way)
        else:
            order.add(a, b)
            graph.add_edge(a, b)

    assert all(order.rank[a] < order.rank[b] for a, b in graph.edges)
    assert sorted(order.rank.values()) == list(range(30))
