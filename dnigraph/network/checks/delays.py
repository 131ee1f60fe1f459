"""The delays of links, which of them a receiver waits for within a tick, and what is wrong with the wiring."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx

from ...passes.errors import nearest
from ..description.link import Agent, Link
from ..description.window_module import WindowModule
from .topological_order import Order

Graph = Any  # nx.DiGraph: networkx is untyped
LOSS = ""  # the node of all losses; no agent can have an empty name


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
        self._order = Order(agents)
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
        ways = [self._order.way(b, a) for a, b in known]
        if any(ways):
            self.delays[number] = 1  # added although it closes a circle: the remaining problems are found too
        if any(ways) and link.delay is None and not link.synthetic:
            return
        for (a, b), back in zip(known, ways, strict=True):
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


def problems(agents: Mapping[str, Agent], links: Sequence[Link], wiring: Wiring) -> Iterator[str]:
    """Everything wrong with the wiring that can be seen before the first tick."""
    if not agents:
        yield "it has no agents: net.add(name, module)"
    for link in links:
        yield from _unknown(agents, link)
    yield from _fed_twice(links)
    for circle in wiring.circles:
        way = " → ".join(circle)
        yield f"a circle without delay: {way}; give one of its links delay=1"
    yield from _strange_synthetic(agents, links)
    yield from _time_first(agents, links)
    for name in _deaf(agents, links):
        agent = agents[name]
        if agent.p_update == 0:
            yield f"{name} can never learn: p_update=0"
        else:
            yield (
                f"{name} can never learn: it has no loss, and no gradient comes back to it from an agent that has one; "
                "give it loss=, connect its outputs to an agent that learns, or freeze it: requires_grad_(False)"
            )


def _unknown(agents: Mapping[str, Agent], link: Link) -> Iterator[str]:
    for port in ((link.source,) if link.source.agent else ()) + link.sinks:
        if port.agent not in agents:
            yield f"{port}: there is no agent {port.agent!r}{nearest(port.agent or '', agents)}"
    for sink in link.sinks:
        if (agent := agents.get(sink.agent or "")) is not None and not agent.inputs.takes(sink.name):
            known = ", ".join(agent.inputs.names) or "none"
            near = nearest(sink.name, agent.inputs.names)
            yield f"{sink}: {type(agent.module).__name__} has no input {sink.name!r}{near}; its inputs: {known}"
    source = agents.get(link.source.agent or "")
    if source is not None and source.outputs is not None and link.source.name not in source.outputs:
        near = nearest(link.source.name, source.outputs)
        yield f"{link.source}: there is no output {link.source.name!r}{near}; outputs: {', '.join(source.outputs)}"


def _fed_twice(links: Sequence[Link]) -> Iterator[str]:
    feeds: dict[str, list[str]] = {}
    for link in links:
        for sink in link.sinks:
            feeds.setdefault(str(sink), []).append(str(link.source))
    for fed, sources in feeds.items():
        if len(sources) > 1:
            yield f"{fed} is fed by {' and by '.join(sources)}: let one input take one of them"


def _strange_synthetic(agents: Mapping[str, Agent], links: Sequence[Link]) -> Iterator[str]:
    for link in links:
        if link.synthetic and str(link.policy) != "latest":
            yield f"{link.name}: a synthetic input stands for one message, so it goes with policy='latest'"
        if link.synthetic and link.outside:
            yield f"{link.name}: an input of the network need not be predicted"


def _time_first(agents: Mapping[str, Agent], links: Sequence[Link]) -> Iterator[str]:
    """Agents that take windows [time, batch, ...] and are linked to others, whose messages are [batch, ...]."""
    first = {name for name, a in agents.items() if isinstance(a.module, WindowModule) and not a.module.batch_first}
    for link in links:
        ends = {link.source.agent, *(sink.agent for sink in link.sinks)}
        for name in sorted(first & ends) if len(ends) > 1 and not link.outside else ():
            yield (
                f"{link.name}: {name} takes windows [time, batch, ...], and messages are [batch, ...]: make its module "
                "batch first, rnn.network(..., batch_first=True)"
            )


def _deaf(agents: Mapping[str, Agent], links: Sequence[Link]) -> list[str]:
    """Agents with parameters to train that no gradient can reach."""
    heard: Graph = nx.DiGraph()
    heard.add_nodes_from(agents)
    heard.add_node(LOSS)
    for name, agent in agents.items():
        if agent.loss is not None:
            heard.add_edge(LOSS, name)
    for link in links:
        if link.source.agent not in agents or _mute(link):
            continue
        if link.boundary == "local-loss":
            heard.add_edge(LOSS, link.source.agent)
        heard.add_edges_from((s.agent, link.source.agent) for s in link.sinks if s.agent in agents)
    reached = nx.descendants(heard, LOSS)
    return [n for n, a in agents.items() if a.trains() and (n not in reached or a.p_update == 0)]


def _mute(link: Link) -> bool:
    """Whether the link never carries a gradient back."""
    kind = getattr(link.boundary, "kind", None)
    return link.boundary is None or (kind == "silent" and not link.boundary.waits)  # type: ignore[union-attr]  # a boundary
