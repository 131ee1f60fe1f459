"""Who would read what in a trial run of a network."""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx

from ..description.link import Agent, Link, Port
from ..running.arrivals import batch_of, first


class Stage:
    """Who reads what in the trial, looked up once."""

    def __init__(self, agents: Mapping[str, Agent], links: Sequence[Link], inputs: Mapping[str, Any]) -> None:
        self.agents, self.inputs, self.batch = agents, inputs, batch_of(inputs.values())
        self.feeds = {sink: link for link in links for sink in link.sinks}
        self.fed: dict[str, list[str]] = {name: [] for name in agents}
        self.sent: dict[str, set[str]] = {name: set() for name in agents}
        for port, link in self.feeds.items():
            self.fed[port.agent or ""].append(port.name)
            if not link.outside:
                self.sent[link.source.agent or ""].add(link.source.name)
        self.others: dict[str, list[str]] = {}  # what is given to agents that take any name
        for name in inputs:
            agent, dot, port_name = name.partition(".")
            if dot and agent in agents and agents[agent].inputs.open:
                self.others.setdefault(agent, []).append(port_name)
        self.tried: set[str] = set()  # agents that ran, or failed
        self._circle: dict[str, int] | None = None

    def first(self, link: Link) -> Any:
        """What is read before anything has come, in the precision and on the device of the sender's weights."""
        weights = () if link.outside else self.agents[link.source.agent or ""].module.parameters()
        return first(link.initial, self.batch, next((p for p in weights if p.is_floating_point()), None))

    def in_circle(self, port: Port) -> bool:
        """Whether the reader waits for itself. Else something before it is the problem."""
        if self._circle is None:
            graph: Any = nx.DiGraph()
            graph.add_edges_from(
                (link.source.agent, sink.agent)
                for sink, link in self.feeds.items()
                if link.initial is None and not link.outside and not self.tried & {link.source.agent, sink.agent}
            )
            parts = enumerate(nx.strongly_connected_components(graph))
            self._circle = {name: number for number, part in parts for name in part}
        source = self.feeds[port].source.agent or ""
        known = self._circle.get(source)
        return known is not None and known == self._circle.get(port.agent or "")
