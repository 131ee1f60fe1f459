"""One tick run on trial: the shape of each output, and which agents cannot take what they are sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from ..passes.errors import DniGraphError, nearest
from ..passes.sandbox.snapshot import untouched
from .delays import Wiring
from .description.agent import Agent
from .description.link import Link, Port
from .description.ports import outputs_of
from .description.samples import batch_of, entered, first_value

MISSING = object()  # a value that is not known


@dataclass
class DryRun:
    """What a trial run on one example showed.

    Attributes:
        inputs: the example, by the names of the network's inputs.
        samples: what each output that is sent looks like, detached.
        learns: outputs that carry a gradient.
        writes: inputs to which their agent writes.
        problems: what does not fit.
        doubts: what fits, and hardly means what the user thinks.
    """

    inputs: Mapping[str, Any]
    samples: dict[str, Any] = field(default_factory=dict)
    learns: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def sample(self, link: Link) -> Any:
        """What is sent over the link; None where that is not known."""
        return self.inputs.get(link.source.name) if link.outside else self.samples.get(str(link.source))


def dry_run(agents: Mapping[str, Agent], wiring: Wiring, inputs: Mapping[str, Any]) -> DryRun:
    """Run every agent once on the example, and once more those that read from later agents. Nothing is changed."""
    trial = _Trial(agents, wiring.links, DryRun(inputs))
    everything = nn.ModuleList([agent.module for agent in agents.values()])
    with untouched(everything), torch.enable_grad():
        names = wiring.order
        for _ in range(2):
            names = [name for name in names if trial.run(agents[name])]
        for name in wiring.order:
            trial.note_missing(agents[name])
    trial.compare_initial(wiring.links)
    return trial.result


class _Trial:
    """The agents of a trial run, which link feeds which input, and the result so far."""

    def __init__(self, agents: Mapping[str, Agent], links: Sequence[Link], result: DryRun) -> None:
        self.agents, self.result = agents, result
        self.inputs, self.batch = result.inputs, batch_of(result.inputs.values())
        self.feeds = {sink: link for link in links for sink in link.sinks}
        self.fed: dict[str, list[str]] = {name: [] for name in agents}
        self.sent: dict[str, set[str]] = {name: set() for name in agents}
        for port, link in self.feeds.items():
            self.fed[port.agent or ""].append(port.name)
            if not link.outside:
                self.sent[link.source.agent or ""].add(link.source.name)
        self.others: dict[str, list[str]] = {}  # inputs of agents that take arguments of any name
        for name in self.inputs:
            agent, dot, port_name = name.partition(".")
            if dot and agent in agents and agents[agent].inputs.open:
                self.others.setdefault(agent, []).append(port_name)
        self.tried: set[str] = set()  # agents that ran, or failed
        self._circles: dict[str, int] | None = None  # by agent, the number of its circle

    def run(self, agent: Agent) -> bool:
        """Run the agent, if its arguments are known, and note what it returns. Returns whether it did not fail."""
        arguments, missing = self._arguments(agent)
        if missing:
            return True
        self.tried.add(agent.name)
        copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in arguments.items()}
        before = {name: v._version for name, v in copies.items() if isinstance(v, Tensor)}
        try:
            returned = agent.module(**copies)
        except Exception as error:
            self._note_failure(agent, arguments, error)
            return False
        self.result.writes |= {f"{agent.name}.{name}" for name, v in before.items() if copies[name]._version != v}
        outputs = outputs_of(returned, agent.outputs)
        if agent.outputs and isinstance(returned, tuple | list) and len(returned) != len(agent.outputs):
            facts = f"outputs names {len(agent.outputs)}, and {type(agent.module).__name__} returns {len(returned)}"
            self.result.problems.append(f"{agent.name}: {facts} values")
        self._note_outputs(agent, outputs)
        self._note_single(agent, arguments)
        return True

    def _note_single(self, agent: Agent, arguments: Mapping[str, Any]) -> None:
        """Note an agent that is given one sample without a batch: one dimension, of which it cannot take a part."""
        tensors = {name: v for name, v in arguments.items() if isinstance(v, Tensor)}
        links = {name: self.feeds.get(Port(agent.name, name)) for name in tensors}
        given = {name: v for name, v in tensors.items() if (link := links[name]) is None or link.outside}
        if not given or any(v.dim() != 1 or len(v) < 2 for v in tensors.values()):
            return
        try:
            agent.module(**{**arguments, **{name: v[: len(v) // 2] for name, v in tensors.items()}})
        except Exception:
            listed = ", ".join(f"{agent.name}.{name} {_shape(v)}" for name, v in given.items())
            self.result.doubts.append(
                f"{listed} looks like one sample without a batch, since {agent.name} cannot take a part of it: values "
                "are [batch, ...], so that heads learn per sample; give a batch of one, x[None]"
            )

    def note_missing(self, agent: Agent) -> None:
        """Note the arguments that the agent lacks."""
        self.result.problems += [words for port in self._arguments(agent)[1] if (words := self._why_missing(port))]

    def compare_initial(self, links: Sequence[Link]) -> None:
        """Note initial values that do not have the shape of messages."""
        for link in links:
            message = self.result.samples.get(str(link.source))
            if link.initial is None or not isinstance(message, Tensor):
                continue
            initial = self._initial(link)
            if isinstance(initial, Tensor) and initial.shape[1:] != message.shape[1:]:
                facts = f"initial is {_shape(initial)}, the messages are {_shape(message)}"
                self.result.problems.append(f"{link.name}: {facts}")

    def _arguments(self, agent: Agent) -> tuple[dict[str, Any], list[Port]]:
        """The agent's arguments in the trial, and the inputs for which there is none yet."""
        arguments, missing = {}, []
        for name in dict.fromkeys((*agent.inputs.names, *self.fed[agent.name], *self.others.get(agent.name, ()))):
            port = Port(agent.name, name)
            value = self._value(port)
            if value is not MISSING:
                arguments[name] = entered(value, port in self.feeds)
            elif name not in agent.inputs.optional and agent.inputs.takes(name):
                missing.append(port)
        return arguments, missing

    def _value(self, port: Port) -> Any:
        if port not in self.feeds:
            return self.inputs.get(str(port), MISSING)
        link = self.feeds[port]
        values: Any = self.inputs if link.outside else self.result.samples
        value = values.get(str(link.source), MISSING)
        if value is MISSING and link.initial is not None:
            value = self._initial(link)
        return value if value is MISSING else link.policy.joined([value])

    def _initial(self, link: Link) -> Any:
        """What receivers read before a message has come, with the dtype and device of the sender's weights."""
        weights = () if link.outside else self.agents[link.source.agent or ""].module.parameters()
        return first_value(link.initial, self.batch, next((p for p in weights if p.is_floating_point()), None))

    def _why_missing(self, port: Port) -> str | None:
        """Why an input has no value; None: the problem lies with an agent before it, and is reported there."""
        if port not in self.feeds:
            near = nearest(str(port), self.inputs)
            return f"{port} is fed by no link and not given: tick({{'{port}': ...}}){near}"
        source = self.feeds[port].source
        if self.feeds[port].outside:
            return f"{port}: the network is not given its input {source.name!r}{nearest(source.name, self.inputs)}"
        if not self._in_circle(port):
            return None
        return (
            f"{port} is read before {source} can have come, in a circle: connect it with initial=(features, ...), or "
            f"give the argument {port.name!r} a default"
        )

    def _in_circle(self, port: Port) -> bool:
        """Whether the input's agent waits for itself."""
        if self._circles is None:
            graph: Any = nx.DiGraph()
            graph.add_edges_from(
                (link.source.agent, sink.agent)
                for sink, link in self.feeds.items()
                if link.initial is None and not link.outside and not self.tried & {link.source.agent, sink.agent}
            )
            circles = enumerate(nx.strongly_connected_components(graph))
            self._circles = {name: number for number, circle in circles for name in circle}
        number = self._circles.get(self.feeds[port].source.agent or "")
        return number is not None and number == self._circles.get(port.agent or "")

    def _note_failure(self, agent: Agent, arguments: Mapping[str, Any], error: Exception) -> None:
        shapes = []
        for name, value in arguments.items():
            link = self.feeds.get(Port(agent.name, name))
            shapes.append(f"{name} {_shape(value)}" + (f" from {link.source}" if link is not None else ""))
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # Of torch's messages the rest is a stack trace.
        why = " ".join(lines) if isinstance(error, DniGraphError) else lines[0]
        facts = f"({', '.join(shapes)}): {type(error).__name__}: {why}"
        self.result.problems.append(f"{agent.name} cannot take what it is given {facts}")

    def _note_outputs(self, agent: Agent, outputs: Mapping[str, Any]) -> None:
        """Note what the agent returned, and outputs that links or the loss name and that are missing or no tensors."""
        problems = self.result.problems
        for name in sorted(self.sent[agent.name] | ({agent.loss} if isinstance(agent.loss, str) else set())):
            port, words = Port(agent.name, name), ""
            if name not in outputs and (agent.outputs is None or name in agent.outputs):
                known = ", ".join(outputs) or "none"
                words = f"{port}: there is no output {name!r}{nearest(name, outputs)}; outputs: {known}"
            elif isinstance(outputs.get(name), tuple | list | dict):
                words = f"{port} is no tensor but a {type(outputs[name]).__name__}: return its tensors under names"
            problems += [words] if words and words not in problems else []
        for name, value in outputs.items():
            key = f"{agent.name}.{name}"
            if isinstance(value, Tensor) and value.requires_grad:
                self.result.learns.add(key)
            self.result.samples[key] = value.detach() if isinstance(value, Tensor) else value


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
