"""Everything wrong with the wiring of a network that can be seen before the first tick."""

from collections.abc import Iterator, Mapping, Sequence

import networkx as nx

from ..engine.delays import Graph, Wiring
from ..engine.description.agent import Agent
from ..engine.description.link import Link
from ..passes.errors import nearest

LOSS = ""  # the node of all losses; no agent can have an empty name


def problems(agents: Mapping[str, Agent], links: Sequence[Link], wiring: Wiring) -> Iterator[str]:
    """Everything wrong with the wiring that can be seen before the first tick."""
    if not agents:
        yield "it has no agents: net.add(name, module)"
    for link in links:
        yield from _unknown(agents, link)
    yield from _fed_twice(links)
    for circle in wiring.circles:
        path = " → ".join(circle)
        yield f"a circle without delay: {path}; give one of its links delay=1"
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
    first = {name for name, agent in agents.items() if agent.time_first}
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
        if link.source.agent not in agents or link.boundary is None:  # silence by name is a control, and no mistake
            continue
        if link.boundary == "local-loss":
            heard.add_edge(LOSS, link.source.agent)
        heard.add_edges_from((s.agent, link.source.agent) for s in link.sinks if s.agent in agents)
    reached = nx.descendants(heard, LOSS)
    return [n for n, a in agents.items() if a.trains() and (n not in reached or a.p_update == 0)]
