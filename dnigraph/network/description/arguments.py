"""Checked agents and links from the arguments of `Network.add` and `Network.connect`."""

from collections.abc import Container, Sequence
from typing import Any

from torch import nn

from ...boundaries import Boundary, BoundaryChoice
from ...boundaries.choices import NAMED as BOUNDARIES
from ...heads import HeadChoice
from ...heads.conditions import ConditionChoice
from ...heads.selection import NAMED as HEADS
from ...passes.errors import nearest
from ...runners.optimizers import MakeOptimizer
from .agent import Agent, AgentLoss
from .clock import Clock, is_whole
from .link import Link, Port, SyntheticChoice
from .network_error import NetworkError
from .policy import LATEST, PolicyChoice, make_policy


def make_agent(
    name: str, module: nn.Module, known: Container[str], every: int, phase: int | None, loss: AgentLoss,
    optimizer: MakeOptimizer | None, clip: float | None, p_update: float, outputs: Sequence[str] | None,
) -> Agent:  # fmt: skip
    """An agent from the arguments of `Network.add`.

    Raises:
        NetworkError: an argument does not fit; all of them are listed.
    """
    clock = Clock(every, (every - 1 if isinstance(every, int) else 0) if phase is None else phase)
    wrong = [f"{name}: {misfit}" for misfit in clock.misfits()]
    if not isinstance(name, str) or not name or "." in name:
        wrong.append(f"{name!r} is no name for an agent: names are words without a dot")
    elif name in known:
        wrong.append(f"there is an agent {name!r} already")
    if not isinstance(module, nn.Module):
        wrong.append(f"{name} is a {type(module).__name__}, not an nn.Module")
    if not isinstance(p_update, int | float) or not 0 <= p_update <= 1:
        wrong.append(f"{name}: p_update={p_update!r} (a number from 0 to 1)")
    if not (loss is None or isinstance(loss, str) or callable(loss)):
        wrong.append(f"{name}: loss is a {type(loss).__name__}, not a function or the name of an output")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0):
        wrong.append(f"{name}: clip={clip!r} (the largest norm of a gradient, above 0)")
    named = (outputs,) if isinstance(outputs, str) else None if outputs is None else tuple(outputs)
    if named is not None and (not named or not all(isinstance(n, str) for n in named) or len(set(named)) < len(named)):
        wrong.append(f"{name}: outputs={outputs!r} (a name for each, all different)")
    if not (optimizer is None or callable(optimizer)):
        wrong.append(f"{name}: optimizer is a {type(optimizer).__name__}, not a function of a list of parameters")
    if wrong:
        raise NetworkError(wrong, "the agent does not fit")
    return Agent(name, module, clock, loss, optimizer, clip, float(p_update), named)


def make_link(
    source: str, sink: str | Sequence[str], delay: int | None, policy: PolicyChoice,
    boundary: "BoundaryChoice | Boundary | None", head: HeadChoice, condition: ConditionChoice,
    synthetic: SyntheticChoice, initial: Any,
) -> Link:  # fmt: skip
    """A link from the arguments of `Network.connect`.

    Raises:
        NetworkError: an argument does not fit; all of them are listed.
    """
    sinks = tuple(sink) if isinstance(sink, list | tuple) else (sink,)
    wrong = [f"{s!r}: an input is called 'agent.input'" for s in sinks if not isinstance(s, str) or "." not in s]
    if not isinstance(source, str) or not source:
        wrong.append(f"{source!r}: an output is called 'agent.output', an input of the whole network by one word")
    if delay is not None and not is_whole(delay, 0):
        wrong.append(f"delay={delay!r} (a whole number from 0 on)")
    if not sinks:
        wrong.append(f"{source!r} is connected to nothing")
    sizes = initial if isinstance(initial, tuple | list) else ()
    if not all(is_whole(n, 0) for n in sizes):
        wrong.append(f"initial={initial!r} (sizes of one sample, a tensor, or a function of the batch size)")
    for what, choice, known in (("boundary", boundary, BOUNDARIES), ("head", head, HEADS)):
        if isinstance(choice, str) and choice not in known:
            wrong.append(f"{what}={choice!r}{nearest(choice, known)}: there are {', '.join(known)}")
    checked_policy = LATEST
    try:
        checked_policy = make_policy(policy)
    except NetworkError as error:
        wrong += error.problems
    if wrong:
        raise NetworkError(wrong, "the link does not fit")
    begin = _port(source) if "." in source else Port(None, source)
    ends = tuple(map(_port, sinks))
    return Link(begin, ends, delay, checked_policy, boundary, head, condition, synthetic, initial)


def _port(words: str) -> Port:
    agent, _, name = words.partition(".")
    return Port(agent, name)
