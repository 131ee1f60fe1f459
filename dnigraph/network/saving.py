"""What a checkpoint of a network holds, and its structure as plain data."""

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dnigraph.checkpoint import load_checkpoint, restore_random, save_checkpoint

from .errors import NetworkError

if TYPE_CHECKING:
    from .network import Network


def structure(net: "Network") -> dict[str, Any]:
    """The wiring as plain data, for JSON: what must be the same where a checkpoint is loaded."""
    agents = {
        name: {
            "module": type(agent.module).__name__,
            "every": agent.clock.every,
            "phase": agent.clock.phase,
            "p_update": agent.p_update,
        }
        for name, agent in net.agents.items()
    }
    links = [
        {
            "source": str(link.source),
            "sinks": [str(sink) for sink in link.sinks],
            "delay": net.delay_of(number),
            "policy": str(link.policy),
            "synthetic": bool(link.synthetic),
            "boundary": b.kind if (b := net.boundaries.get(link.name)) is not None else None,
        }
        for number, link in enumerate(net.links)
    ]
    return {"agents": agents, "links": links}


def save(net: "Network", path: str | os.PathLike[str]) -> None:
    """Write everything that the next tick depends on."""
    actors = net._actors()
    waiting = [
        f"{name}: {len(a.waiting)} firings wait for their true gradients" for name, a in actors.items() if a.waiting
    ]
    if waiting:
        raise NetworkError(
            [*waiting, "let them learn first: net.settle(), or tick(..., ends=True)"], "the network cannot be saved now"
        )
    state = {
        "structure": structure(net),
        "modules": {name: module.state_dict() for name, module in net.modules().items()},
        "actors": {name: actor.state() for name, actor in actors.items()},
        "ticks": net.ticks,
    }
    save_checkpoint(path, {"network": state})


def load(net: "Network", path: str | os.PathLike[str], inputs: Any) -> None:
    """Take up what `save` wrote."""
    whole = load_checkpoint(path, {"network"})
    state = whole["network"]
    if inputs is not None:
        net.validate(inputs)
    if state["actors"] and not net._actors():
        raise NetworkError(
            ["this network has not run yet, so it has no heads: net.load(path, inputs), with what `tick` is given"],
            "the checkpoint cannot be loaded",
        )
    if wrong := list(_differences("", structure(net), state["structure"])):
        raise NetworkError(wrong, "the checkpoint belongs to another network")
    for name, module in net.modules().items():
        module.load_state_dict(state["modules"][name])
    for name, actor in net._actors().items():
        actor.load(state["actors"][name])
    net.ticks = state["ticks"]
    restore_random(whole)


def _differences(where: str, here: Any, there: Any) -> Iterator[str]:
    """What is otherwise, in words."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys((*here, *there)):
            yield from _differences(f"{where}{'.' if where else ''}{key}", here.get(key), there.get(key))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for i, (own, other) in enumerate(zip(here, there, strict=True)):
            yield from _differences(f"{where}[{i}]", own, other)
    elif here != there:
        yield f"{where} is {here!r} here and {there!r} in the file"
