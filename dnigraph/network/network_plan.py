"""A network as a plan, so that it is drawn as a cut model is: agents as parts, links as crossings.

A plan has no circles. A link that closes one is a crossing behind its sender, with its boundary, and comes in at the
readers before it under the same name, which says from where to where it goes and its delay.
"""

from math import prod

from ..engine.description.agent import Agent
from ..engine.description.link import Link, Port
from ..passes.plan.plan import Crossing, Part, Plan
from .overview import Overview


def plan_of(net: Overview) -> Plan:
    """The plan to draw."""
    order = {name: rank for rank, name in enumerate(net.order)}
    late = {n for n, link in enumerate(net.links) if _back(link, order)}
    inputs: dict[str, list[str]] = {name: [] for name in net.agents}
    outputs: dict[str, list[str]] = {name: [] for name in net.agents}
    for number, link in enumerate(net.links):
        for sink in link.sinks:
            back = number in late and order[sink.agent or ""] <= order[link.source.agent or ""]
            inputs[sink.agent or ""].append(_words(net, number, link, order) if back else str(link.source))
        if link.source.agent:
            outputs[link.source.agent].append(str(link.source))
    for port in net.inputs:
        if (name := port.partition(".")[0]) in inputs and "." in port:
            inputs[name].append(port)
    names = {name: _name(agent) for name, agent in net.agents.items()}
    parts = tuple(
        Part(names[n], order[n], (type(net.agents[n].module).__name__,), _once(inputs[n]), _once(outputs[n]), _size(a))
        for n, a in sorted(net.agents.items(), key=lambda pair: order[pair[0]])
    )
    crossings = tuple(
        _crossing(net, number, link, names, order) for number, link in enumerate(net.links) if not link.outside
    )
    entries = [*net.inputs, *(_words(net, n, net.links[n], order) for n in sorted(late))]
    cuts = tuple((str(link.source), str(sink)) for link in net.links for sink in link.sinks if not link.outside)
    notes = tuple(f"goes back in a circle: {_words(net, n, net.links[n], order)}" for n in sorted(late))
    return Plan("Network", "wired", cuts, parts, crossings, _once(entries), notes)


def _back(link: Link, order: dict[str, int]) -> list[Port]:
    """The inputs that a link feeds of agents that come before its sender, or are it."""
    return [s for s in link.sinks if not link.outside and order[s.agent or ""] <= order[link.source.agent or ""]]


def _crossing(net: Overview, number: int, link: Link, names: dict[str, str], order: dict[str, int]) -> Crossing:
    boundary, back = net.boundaries.get(link.name), _back(link, order)
    consumers = tuple(dict.fromkeys(names[s.agent or ""] for s in link.sinks if s not in back))
    head = None if boundary is None else boundary.head_name
    spec = None if boundary is None else boundary.spec
    size = 0 if spec is None else prod(spec.shape) * spec.dtype.itemsize
    return Crossing(
        _words(net, number, link, order), str(link.source), names[link.source.agent or ""], consumers,
        None if spec is None else spec.shape, None if spec is None else str(spec.dtype).removeprefix("torch."), size,
        gradient=link.boundary is not None,
        boundary=boundary.kind if boundary is not None else link.boundary if isinstance(link.boundary, str) else None,
        head=head, head_parameters=0 if boundary is None else boundary.head_parameters,
    )  # fmt: skip


def _words(net: Overview, number: int, link: Link, order: dict[str, int]) -> str:
    delay, policy = net.delays[number], str(link.policy)
    facts = [f"delay {delay}"] * bool(delay) + [policy] * (policy != "latest") + ["predicted"] * bool(link.synthetic)
    back = ", ".join(map(str, _back(link, order)))
    return f"{link.source}" + (f" → {back}" if back else "") + (f" ({', '.join(facts)})" if facts else "")


def _name(agent: Agent) -> str:
    return agent.name if agent.clock.every == 1 else f"{agent.name}, {agent.clock}"


def _size(agent: Agent) -> int:
    return sum(p.numel() for p in agent.module.parameters())


def _once(names: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
