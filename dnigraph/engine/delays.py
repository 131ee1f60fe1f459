"""The delays of links, and which of them a receiver waits for within a tick."""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from .description.agent import Agent
from .description.link import Link
from .topological_order import TopologicalOrder

Graph = Any  # nx.DiGraph: networkx is untyped


class Wiring:
    """Agents and links with every delay decided.

    A link for which the user gives no delay has delay 0, or 1 if it closes a circle of links with delay 0. Links with
    a delay of the user's are placed first, the others in the order in which they were made.

    Attributes:
        delays: of each link, ticks.
        order: the agents; a receiver over a link without delay comes after the sender.
    """

    def __init__(self, agents: Mapping[str, Agent], links: Sequence[Link], predicting: bool = True):
        self.agents, self.links, self.predicting = agents, links, predicting
        self.delays: dict[int, int] = {}
        self.circles: list[list[str]] = []  # of links that the user wants without delay
        self._order = TopologicalOrder(agents)
        for number in sorted(range(len(links)), key=lambda i: links[i].delay is None):
            self._decide(number, links[number])
        graph: Graph = nx.DiGraph()
        graph.add_nodes_from(agents)
        graph.add_edges_from((a, b) for a, ends in self._order.after.items() for b in ends)
        rank = {name: i for i, name in enumerate(agents)}
        self.order: list[str] = list(nx.lexicographical_topological_sort(graph, key=rank.__getitem__))

    def waits(self, number: int) -> bool:
        """Whether the receivers of a link read a message in the tick in which it is sent."""
        link = self.links[number]
        return self.delays[number] == 0 and not (self.predicting and link.synthetic)

    def _decide(self, number: int, link: Link) -> None:
        pairs = [(str(link.source.agent), str(sink.agent)) for sink in link.sinks]
        known = [(a, b) for a, b in pairs if a in self.agents and b in self.agents]
        self.delays[number] = delay = link.delay or 0
        if link.outside or delay or (self.predicting and link.synthetic):
            return
        paths = [self._order.path(b, a) for a, b in known]
        if any(paths):
            self.delays[number] = 1  # added although it closes a circle: the remaining problems are found too
        if any(paths) and link.delay is None and not link.synthetic:
            return
        for (a, b), back in zip(known, paths, strict=True):
            if back:
                self.circles.append([a, *back])
            else:
                self._order.add(a, b)


def graph_of(agents: Mapping[str, Agent], links: Sequence[Link], delays: Mapping[int, int]) -> Graph:
    """The network as a `networkx.MultiDiGraph`: a node for each agent, an edge for each receiver of each link."""
    graph: Graph = nx.MultiDiGraph()
    for name, agent in agents.items():
        graph.add_node(name, agent=agent)
    for number, link in enumerate(links):
        for sink in link.sinks:
            if not link.outside:
                facts = {"source": link.source.name, "sink": sink.name, "delay": delays[number], "link": link}
                graph.add_edge(link.source.agent, sink.agent, key=str(sink), **facts)
    return graph
