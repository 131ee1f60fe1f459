"""A network as a plan, so that it is drawn as a cut model is: agents as parts, links as crossings.

A plan has no circles. A link that closes one is drawn as an output of its sender and an input of its receivers with the
same name, which gives its delay.
"""

from ...passes.plan.plan import Crossing, Part, Plan
from ..description.agent import Agent
from ..description.link import Link
from ..description.overview import Overview


def plan_of(net: Overview) -> Plan:
    """The plan to draw."""
    order = {name: rank for rank, name in enumerate(net.order)}
    late = {n for n, link in enumerate(net.links) if _goes_back(link, order)}
    inputs: dict[str, list[str]] = {name: [] for name in net.agents}
    outputs: dict[str, list[str]] = {name: [] for name in net.agents}
    for number, link in enumerate(net.links):
        key = _words(net, number, link) if number in late else str(link.source)
        for sink in link.sinks:
            inputs[sink.agent or ""].append(key)
        if link.source.agent:
            outputs[link.source.agent].append(key)
    for port in net.inputs:
        if (name := port.partition(".")[0]) in inputs and "." in port:
            inputs[name].append(port)
    names = {name: _name(agent) for name, agent in net.agents.items()}
    parts = tuple(
        Part(names[n], order[n], (type(net.agents[n].module).__name__,), _once(inputs[n]), _once(outputs[n]), _size(a))
        for n, a in sorted(net.agents.items(), key=lambda pair: order[pair[0]])
    )
    crossings = tuple(
        _crossing(net, number, link, names)
        for number, link in enumerate(net.links)
        if not link.outside and number not in late
    )
    entries = [*net.inputs, *(_words(net, n, net.links[n]) for n in sorted(late))]
    cuts = tuple((str(link.source), str(sink)) for link in net.links for sink in link.sinks if not link.outside)
    notes = tuple(f"goes back in a circle: {_words(net, n, net.links[n])}" for n in sorted(late))
    return Plan("Network", "wired", cuts, parts, crossings, _once(entries), notes)


def _goes_back(link: Link, order: dict[str, int]) -> bool:
    return not link.outside and any(order[s.agent or ""] <= order[link.source.agent or ""] for s in link.sinks)


def _crossing(net: Overview, number: int, link: Link, names: dict[str, str]) -> Crossing:
    boundary = net.boundaries.get(link.name)
    consumers = tuple(dict.fromkeys(names[s.agent or ""] for s in link.sinks))
    head = None if boundary is None else boundary.head_name
    return Crossing(
        _words(net, number, link), str(link.source), names[link.source.agent or ""], consumers,
        None if boundary is None else boundary.spec.shape, gradient=link.boundary is not None,
        boundary=boundary.kind if boundary is not None else link.boundary if isinstance(link.boundary, str) else None,
        head=head, head_parameters=0 if boundary is None else boundary.head_parameters,
    )  # fmt: skip


def _words(net: Overview, number: int, link: Link) -> str:
    delay, policy = net.delays[number], str(link.policy)
    facts = [f"delay {delay}"] * bool(delay) + [policy] * (policy != "latest") + ["predicted"] * bool(link.synthetic)
    return f"{link.source}" + (f" ({', '.join(facts)})" if facts else "")


def _name(agent: Agent) -> str:
    return agent.name if agent.clock.every == 1 else f"{agent.name}, {agent.clock}"


def _size(agent: Agent) -> int:
    return sum(p.numel() for p in agent.module.parameters())


def _once(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
