"""One tick run on trial: the shape of each output, and which agents cannot take what they are sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from ...passes.errors import DniGraphError, nearest
from ...passes.sandbox.snapshot import untouched
from ..description.agent import Agent
from ..description.link import Link, Port
from ..description.ports import outputs_of
from ..description.samples import batch_of, entered, first_value
from .delays import Wiring

MISSING = object()


class Stage:
    """Which link feeds which input, looked up once for the whole trial."""

    def __init__(self, agents: Mapping[str, Agent], links: Sequence[Link], inputs: Mapping[str, Any]) -> None:
        self.agents, self.inputs, self.batch = agents, inputs, batch_of(inputs.values())
        self.feeds = {sink: link for link in links for sink in link.sinks}
        self.fed: dict[str, list[str]] = {name: [] for name in agents}
        self.sent: dict[str, set[str]] = {name: set() for name in agents}
        for port, link in self.feeds.items():
            self.fed[port.agent or ""].append(port.name)
            if not link.outside:
                self.sent[link.source.agent or ""].add(link.source.name)
        self.others: dict[str, list[str]] = {}  # inputs of agents that take arguments of any name
        for name in inputs:
            agent, dot, port_name = name.partition(".")
            if dot and agent in agents and agents[agent].inputs.open:
                self.others.setdefault(agent, []).append(port_name)
        self.tried: set[str] = set()  # agents that ran, or failed
        self._circle: dict[str, int] | None = None

    def first(self, link: Link) -> Any:
        """What receivers read before a message has come, with the dtype and device of the sender's weights."""
        weights = () if link.outside else self.agents[link.source.agent or ""].module.parameters()
        return first_value(link.initial, self.batch, next((p for p in weights if p.is_floating_point()), None))

    def in_circle(self, port: Port) -> bool:
        """Whether the input's agent waits for itself. If not, the problem lies with an agent before it."""
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


@dataclass
class Rehearsal:
    """What a trial run on one example showed.

    Attributes:
        samples: what each output that is sent looks like, detached.
        learns: outputs that carry a gradient.
        writes: inputs to which their agent writes.
        problems: what does not fit.
    """

    samples: dict[str, Any] = field(default_factory=dict)
    learns: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def rehearse(agents: Mapping[str, Agent], wiring: Wiring, inputs: Mapping[str, Any]) -> Rehearsal:
    """Run every agent once on the example, and once more those that read from later agents. Nothing is changed."""
    found, stage = Rehearsal(), Stage(agents, wiring.links, inputs)
    everything = nn.ModuleList([agent.module for agent in agents.values()])
    with untouched(everything), torch.enable_grad():
        failed: set[str] = set()
        for _ in range(2):
            for name in wiring.order:
                arguments = _arguments(agents[name], stage, found)
                if isinstance(arguments, dict) and name not in failed:
                    stage.tried.add(name)
                    if not _runs(agents[name], arguments, stage, found):
                        failed.add(name)
        for name in wiring.order:
            unknown = _arguments(agents[name], stage, found)
            found.problems += unknown if isinstance(unknown, list) else []
    found.problems += _wrong_first(wiring.links, stage, found)
    return found


def _arguments(agent: Agent, stage: Stage, found: Rehearsal) -> "dict[str, Any] | list[str]":
    """The agent's arguments in the trial, or a line for each that is missing."""
    arguments, unknown, blocked = {}, [], False
    for name in dict.fromkeys((*agent.inputs.names, *stage.fed[agent.name], *stage.others.get(agent.name, ()))):
        port = Port(agent.name, name)
        value = _sample(port, stage, found)
        if value is not MISSING:
            arguments[name] = entered(value, port in stage.feeds)
        elif name not in agent.inputs.optional and agent.inputs.takes(name):
            words = _unread(port, stage)
            unknown += [words] if words else []
            blocked = True
    return unknown if blocked else arguments


def _sample(port: Port, stage: Stage, found: Rehearsal) -> Any:
    if port not in stage.feeds:
        return stage.inputs.get(str(port), MISSING)
    link = stage.feeds[port]
    known: Any = stage.inputs if link.outside else found.samples
    known = known.get(str(link.source), MISSING)
    if known is MISSING and link.initial is not None:
        known = stage.first(link)
    return known if known is MISSING else link.policy.joined([known])


def _unread(port: Port, stage: Stage) -> str | None:
    if port not in stage.feeds:
        near = nearest(str(port), stage.inputs)
        return f"{port} is fed by no link and not given: tick({{'{port}': ...}}){near}"
    link = stage.feeds[port]
    if link.outside:
        return (
            f"{port}: the network is not given its input {link.source.name!r}{nearest(link.source.name, stage.inputs)}"
        )
    if not stage.in_circle(port):
        return None  # the problem lies with an agent before it, and is reported there
    return (
        f"{port} is read before {link.source} can have come, in a circle: connect it with initial=(features, ...), or "
        f"give the argument {port.name!r} a default"
    )


def _runs(agent: Agent, arguments: dict[str, Any], stage: Stage, found: Rehearsal) -> bool:
    given = {name: v.clone() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    before = {name: v._version for name, v in given.items() if isinstance(v, Tensor)}
    try:
        made = agent.module(**given)
    except Exception as error:
        said = ", ".join(
            f"{name} {_shape(value)}"
            + (f" from {stage.feeds[port].source}" if (port := Port(agent.name, name)) in stage.feeds else "")
            for name, value in arguments.items()
        )
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        why = (
            " ".join(lines) if isinstance(error, DniGraphError) else lines[0]
        )  # the rest of torch's message is a stack trace
        found.problems.append(f"{agent.name} cannot take what it is given ({said}): {type(error).__name__}: {why}")
        return False
    found.writes |= {f"{agent.name}.{name}" for name, version in before.items() if given[name]._version != version}
    outputs = outputs_of(made, agent.outputs)
    if agent.outputs and isinstance(made, tuple | list) and len(made) != len(agent.outputs):
        said = f"outputs names {len(agent.outputs)}, and {type(agent.module).__name__} returns {len(made)}"
        found.problems.append(f"{agent.name}: {said} values")
    _missing_outputs(agent, outputs, stage, found)
    for name, value in outputs.items():
        key = f"{agent.name}.{name}"
        if isinstance(value, Tensor) and value.requires_grad:
            found.learns.add(key)
        found.samples[key] = value.detach() if isinstance(value, Tensor) else value
    return True


def _missing_outputs(agent: Agent, outputs: Mapping[str, Any], stage: Stage, found: Rehearsal) -> None:
    wanted = stage.sent[agent.name] | ({agent.loss} if isinstance(agent.loss, str) else set())
    for name in sorted(wanted):
        port = Port(agent.name, name)
        if name not in outputs and (agent.outputs is None or name in agent.outputs):
            known = ", ".join(outputs) or "none"
            words = f"{port}: there is no output {name!r}{nearest(name, outputs)}; outputs: {known}"
            found.problems += [words] if words not in found.problems else []
        elif isinstance(outputs.get(name), tuple | list | dict):
            words = f"{port} is no tensor but a {type(outputs[name]).__name__}: return its tensors under names"
            found.problems += [words] if words not in found.problems else []


def _wrong_first(links: Sequence[Link], stage: Stage, found: Rehearsal) -> list[str]:
    wrong = []
    for link in links:
        real = found.samples.get(str(link.source))
        if link.initial is None or not isinstance(real, Tensor):
            continue
        given = stage.first(link)
        if isinstance(given, Tensor) and given.shape[1:] != real.shape[1:]:
            wrong.append(f"{link.name}: initial is {_shape(given)}, the messages are {_shape(real)}")
    return wrong


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
