"""Checked agents and links from the arguments of `Network.add` and `Network.connect`."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..boundaries import Boundary, BoundaryChoice
from ..boundaries.choices import NAMED as BOUNDARIES
from ..engine.description.agent import Agent, AgentLoss
from ..engine.description.clock import Clock
from ..engine.description.link import Link, Port, SyntheticChoice
from ..engine.description.network_error import NetworkError
from ..engine.description.policy import LATEST, PolicyChoice, make_policy
from ..engine.updates.makers import loss_misfits, maker_misfits
from ..engine.updates.rules import MakeOptimizer
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice
from ..heads.selection import NAMED as HEADS
from ..passes.errors import is_number, is_whole, nearest


def check_network(optimizer: Any, condition: Any, seed: Any, log: Any) -> None:
    """Check the arguments of `Network`.

    Raises:
        NetworkError: an argument does not fit; all of them are listed.
    """
    wrong = _maker_misfits(optimizer) + _condition_misfits(condition)
    if isinstance(seed, bool) or not isinstance(seed, int):
        wrong.append(f"seed={seed!r} (a whole number)")
    if not isinstance(log, bool):
        wrong.append(f"log={log!r} (True: keep a log in net.log; net.log.save(path) writes it to a file)")
    if wrong:
        raise NetworkError(wrong, "the network does not fit")


def make_agent(
    name: str, module: nn.Module, known: Container[str], every: int, phase: int | None, loss: AgentLoss,
    optimizer: MakeOptimizer | None, clip: float | None, p_update: float, outputs: Sequence[str] | None,
) -> Agent:  # fmt: skip
    """An agent from the arguments of `Network.add`.

    Raises:
        NetworkError: an argument does not fit; all of them are listed.
    """
    clock = Clock(every, (every - 1 if is_whole(every, 1) else 0) if phase is None else phase)
    wrong = [f"{name}: {misfit}" for misfit in clock.misfits()]
    if not isinstance(name, str) or not name or "." in name:
        wrong.append(f"{name!r} is no name for an agent: names are words without a dot")
    elif name in known:
        wrong.append(f"there is an agent {name!r} already")
    if not isinstance(module, nn.Module):
        wrong.append(f"{name} is a {type(module).__name__}, not an nn.Module")
    if not (is_number(p_update) and 0 <= p_update <= 1):
        wrong.append(f"{name}: p_update={p_update!r} (a number from 0 to 1)")
    wrong += [f"{name}: {misfit}" for misfit in (loss_misfits(loss) if loss is not None else ())]
    if clip is not None and not (is_number(clip) and clip > 0):
        wrong.append(f"{name}: clip={clip!r} (the largest norm of a gradient, above 0)")
    listed = outputs if isinstance(outputs, Iterable) else ()  # what is no list of names is one of no names
    named = (outputs,) if isinstance(outputs, str) else None if outputs is None else tuple(listed)
    if named is not None and (not named or not all(isinstance(n, str) for n in named) or len(set(named)) < len(named)):
        wrong.append(f"{name}: outputs={outputs!r} (a name for each, all different)")
    wrong += [f"{name}: {misfit}" for misfit in _maker_misfits(optimizer)]
    if wrong:
        raise NetworkError(wrong, "the agent does not fit")
    return Agent(name, module, clock, loss, optimizer, clip, float(p_update), named)


def make_link(
    source: str, sink: str | Sequence[str], delay: int | None, back: int, policy: PolicyChoice,
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
    if not is_whole(back, 0):
        wrong.append(f"back={back!r} (a whole number from 0 on)")
    if not sinks:
        wrong.append(f"{source!r} is connected to nothing")
    sizes = initial if isinstance(initial, tuple | list) else ()
    if not all(is_whole(n, 0) for n in sizes):
        wrong.append(f"initial={initial!r} (sizes of one sample, a tensor, or a function of the batch size)")
    for what, choice, known in (("boundary", boundary, BOUNDARIES), ("head", head, HEADS)):
        if isinstance(choice, str) and choice not in known:
            wrong.append(f"{what}={choice!r}{nearest(choice, known)}: there are {', '.join(known)}")
    wrong += _condition_misfits(condition)
    for what, choice in (("boundary", boundary), ("head", head)):
        if not (choice is None or isinstance(choice, str) or callable(choice)):
            wrong.append(f"{what}={choice!r} (a name, or a factory)")
    predicted = isinstance(synthetic, bool | str) or callable(synthetic)
    names = synthetic if isinstance(synthetic, tuple | list) else () if predicted else (None,)
    if not all(isinstance(n, str) for n in names):
        wrong.append(f"synthetic={synthetic!r} (True, names of the network's inputs, or a factory of a module)")
    if not (initial is None or isinstance(initial, tuple | list | Tensor) or callable(initial)):
        wrong.append(f"initial={initial!r} (sizes of one sample, a tensor, or a function of the batch size)")
    checked_policy = LATEST
    try:
        checked_policy = make_policy(policy)
    except NetworkError as error:
        wrong += error.problems
    if wrong:
        raise NetworkError(wrong, "the link does not fit")
    begin = _port(source) if "." in source else Port(None, source)
    ends = tuple(map(_port, sinks))
    return Link(begin, ends, delay, back, checked_policy, boundary, head, condition, synthetic, initial)


def _maker_misfits(optimizer: Any) -> list[str]:
    if isinstance(optimizer, Mapping):
        return ["optimizer is a dict: give each agent its own, net.add(..., optimizer=lambda params: ...)"]
    return maker_misfits(optimizer)


def _condition_misfits(condition: Any) -> list[str]:
    if condition is None or callable(condition):
        return []
    return [f"condition={condition!r} (what heads see of the label: dg.one_hot(classes), dg.embedded(...), or None)"]


def _port(words: str) -> Port:
    agent, _, name = words.partition(".")
    return Port(agent, name)
