"""One tick on trial: what each output looks like, and which agents cannot take what they are sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnigraph.passes.capture.untouched import untouched
from dnigraph.passes.errors import nearest

from .inbox import batch_of, entered
from .link import Agent, Link, Port
from .ports import outputs_of
from .wiring import Wiring

MISSING = object()


@dataclass
class Rehearsal:
    """What a trial run on one example showed.

    Attributes:
        samples: what each output that is sent looks like, detached.
        learns: outputs that carry a gradient.
        problems: what does not fit.
    """

    samples: dict[str, Any] = field(default_factory=dict)
    learns: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def rehearse(agents: Mapping[str, Agent], wiring: Wiring, inputs: Mapping[str, Any]) -> Rehearsal:
    """Run every agent once on the example, and those that hear of later agents once more, leaving no trace."""
    found, batch = Rehearsal(), batch_of(inputs.values())
    feeds = {sink: (number, link) for number, link in enumerate(wiring.links) for sink in link.sinks}
    everything = nn.ModuleList([agent.module for agent in agents.values()])
    with untouched(everything), torch.enable_grad():
        failed: set[str] = set()
        for _ in range(2):
            for name in wiring.order:
                arguments = _arguments(agents[name], feeds, found, inputs, batch)
                if (
                    isinstance(arguments, dict)
                    and name not in failed
                    and not _runs(agents[name], arguments, feeds, found)
                ):
                    failed.add(name)
        for name in wiring.order:
            unknown = _arguments(agents[name], feeds, found, inputs, batch)
            found.problems += unknown if isinstance(unknown, list) else []
    found.problems += _wrong_first(wiring.links, found, batch)
    return found


def _arguments(
    agent: Agent, feeds: Mapping[Port, tuple[int, Link]], found: Rehearsal, inputs: Mapping[str, Any], batch: int | None
) -> "dict[str, Any] | list[str]":
    """What the agent reads in the trial, or what it cannot read, in words."""
    arguments, unknown = {}, []
    names = dict.fromkeys((*agent.inputs.names, *(s.name for s in feeds if s.agent == agent.name)))
    for name in names:
        port = Port(agent.name, name)
        value = _sample(port, feeds, found, inputs, batch)
        if value is not MISSING:
            arguments[name] = entered(value, port in feeds)
        elif name not in agent.inputs.optional and agent.inputs.takes(name):
            if words := _unread(port, feeds, found, inputs):
                unknown.append(words)
            else:
                return []
    return unknown or arguments


def _sample(
    port: Port, feeds: Mapping[Port, tuple[int, Link]], found: Rehearsal, inputs: Mapping[str, Any], batch: int | None
) -> Any:
    if port not in feeds:
        return inputs.get(str(port), MISSING)
    _, link = feeds[port]
    known: Any = inputs.get(link.source.name, MISSING) if link.outside else found.samples.get(str(link.source), MISSING)
    if known is MISSING and link.initial is not None:
        known = first(link.initial, batch)
    return known if known is MISSING else link.policy.joined([known])


def _unread(
    port: Port, feeds: Mapping[Port, tuple[int, Link]], found: Rehearsal, inputs: Mapping[str, Any]
) -> str | None:
    if port not in feeds:
        near = nearest(str(port), inputs)
        return f"{port} is fed by no link and not given: tick({{'{port}': ...}}){near}"
    _, link = feeds[port]
    if link.outside:
        return f"{port}: the network is not given its input {link.source.name!r}{nearest(link.source.name, inputs)}"
    if any(p.startswith(f"{link.source.agent}.") for p in found.samples):
        return None  # the sender ran: its outputs are the problem, and that has been said
    return (
        f"{port} is read before {link.source} can have come, in a circle: connect it with initial=(features, ...), or "
        f"give the argument {port.name!r} a default"
    )


def _runs(agent: Agent, arguments: dict[str, Any], feeds: Mapping[Port, tuple[int, Link]], found: Rehearsal) -> bool:
    try:
        made = agent.module(**arguments)
    except Exception as error:
        said = ", ".join(
            f"{name} {_shape(value)}"
            + (f" from {feeds[port][1].source}" if (port := Port(agent.name, name)) in feeds else "")
            for name, value in arguments.items()
        )
        why = (str(error).splitlines() or [""])[0]
        found.problems.append(f"{agent.name} cannot take what it is given ({said}): {type(error).__name__}: {why}")
        return False
    outputs = outputs_of(made, agent.outputs)
    _missing_outputs(agent, outputs, feeds, found)
    for name, value in outputs.items():
        key = f"{agent.name}.{name}"
        if isinstance(value, Tensor) and value.requires_grad:
            found.learns.add(key)
        found.samples[key] = value.detach() if isinstance(value, Tensor) else value
    return True


def _missing_outputs(
    agent: Agent, outputs: Mapping[str, Any], feeds: Mapping[Port, tuple[int, Link]], found: Rehearsal
) -> None:
    wanted = {link.source for _, link in feeds.values() if link.source.agent == agent.name}
    wanted |= {Port(agent.name, agent.loss)} if isinstance(agent.loss, str) else set()
    for port in sorted(wanted, key=str):
        if port.name not in outputs and (agent.outputs is None or port.name in agent.outputs):
            known = ", ".join(outputs) or "none"
            words = f"{port}: there is no output {port.name!r}{nearest(port.name, outputs)}; outputs: {known}"
            found.problems += [words] if words not in found.problems else []
        elif isinstance(outputs.get(port.name), tuple | list | dict):
            words = f"{port} is no tensor but a {type(outputs[port.name]).__name__}: return its tensors under names"
            found.problems += [words] if words not in found.problems else []


def _wrong_first(links: Sequence[Link], found: Rehearsal, batch: int | None) -> list[str]:
    wrong = []
    for link in links:
        real = found.samples.get(str(link.source))
        if link.initial is None or not isinstance(real, Tensor):
            continue
        given = first(link.initial, batch)
        if isinstance(given, Tensor) and given.shape[1:] != real.shape[1:]:
            wrong.append(f"{link.name}: initial is {_shape(given)}, the messages are {_shape(real)}")
    return wrong


def first(initial: Any, batch: int | None) -> Any:
    """What is read before anything has come: a tensor as it is, zeros for the sizes of one sample, or what it makes."""
    if callable(initial):
        return initial(batch)
    if isinstance(initial, tuple | list | torch.Size):
        return torch.zeros(batch or 1, *initial)
    return initial


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
