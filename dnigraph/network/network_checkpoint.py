"""What a checkpoint of a network holds, and its structure as plain data."""

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..engine.actor import Actor
from ..engine.actor_state import restore_state, set_aside, state_of, take_back
from ..engine.description.network_error import NetworkError
from ..engine.event_log import EventLog
from ..engine.running_network import HEAD_OF, Kept
from ..engine.updates.misfits import groups_misfit
from ..passes.errors import is_whole
from .overview import Overview

Actors = Mapping[str, Actor]
Modules = Mapping[str, nn.Module]


def structure(net: Overview) -> dict[str, Any]:
    """The wiring as plain data, for JSON: what must be the same where a checkpoint is loaded."""
    agents = {
        name: {
            "module": type(agent.module).__name__,
            "every": agent.clock.every,
            "phase": agent.clock.phase,
            "p_update": agent.p_update,
            "clip": agent.clip,
        }
        for name, agent in net.agents.items()
    }
    links = [
        {
            "source": str(link.source),
            "sinks": [str(sink) for sink in link.sinks],
            "delay": net.delays[number],
            "back": link.back,
            "policy": str(link.policy),
            "synthetic": bool(link.synthetic),
            "initial": _plain_initial(link.initial),
            "boundary": b.kind if (b := net.boundaries.get(link.name)) is not None else None,
            "options": None if b is None else b.all_settings(),
        }
        for number, link in enumerate(net.links)
    ]
    return {"agents": agents, "links": links}


def refuse_waiting(actors: Actors, what: str) -> None:
    """Refuse graphs that wait for gradients: neither a file nor a copy can hold them.

    Raises:
        NetworkError: firings wait for true gradients.
    """
    waiting = [
        f"{name}: {len(actor.waiting)} firings wait for their true gradients"
        for name, actor in actors.items()
        if actor.waiting
    ]
    if waiting:
        raise NetworkError(
            [*waiting, "let them learn first: net.settle(), or tick(..., ends=True)"],
            f"the network cannot be {what} now",
        )


def state_of_network(
    net: Overview, modules: Modules, actors: Actors, kept: Kept, log: EventLog | None
) -> dict[str, Any]:
    """Everything that the next tick depends on.

    Raises:
        NetworkError: firings wait for true gradients.
    """
    refuse_waiting(actors, "saved")
    return {
        "structure": structure(net),
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "actors": {name: state_of(actor) for name, actor in actors.items()},
        "optimizers": _kinds(kept),
        "groups": {n: group.optimizer.state_dict() for n, group in kept.groups.items()} | kept.waiting,
        "chances": {name: chance.get_state() for name, chance in kept.chances.items()},
        "present": {name: agent.present for name, agent in net.agents.items()},
        "ticks": net.ticks,
        "log": None if log is None else log.state(),
    }


def load_state(
    net: Overview, modules: Modules, actors: Actors, kept: Kept, state: Mapping[str, Any], late: bool = False
) -> None:
    """Give modules, actors and optimisers what `state_of_network` took of them.

    Args:
        late: heads may come later, on another way through a model: either side may lack their optimisers.

    Raises:
        NetworkError: the state is that of another network; all differences are listed, and nothing has changed.
    """
    if state["actors"] and not actors:
        raise NetworkError(
            ["this network has not run yet, so it has no heads: net.load(path, inputs), with what `tick` is given"],
            "the checkpoint cannot be loaded",
        )
    here, there = structure(net), state["structure"]
    if not state["actors"]:  # the file is of before the first tick, when boundaries are made
        here, there = _without_boundaries(here), _without_boundaries(there)
    wrong = list(_differences("", here, there))
    wrong = wrong or list(_other_weights(modules, state["modules"]))
    own, saved = _kinds(kept), state["optimizers"]
    apart = {n for n in own.keys() ^ state["groups"].keys() if late and n.startswith(HEAD_OF)}
    wrong += _differences("optimizer", *({n: k for n, k in side.items() if n not in apart} for side in (own, saved)))
    wrong = wrong or list(_other_groups(kept, state["groups"], apart))
    if not is_whole(state["ticks"], 0):
        wrong.append(f"its clock stands at {state['ticks']!r}, which is no number of ticks")
    if wrong:
        raise NetworkError(wrong, "the checkpoint belongs to another network")
    with _undone_on_failure(modules, actors, kept):
        for name, module in modules.items():
            _load(name, module, state["modules"][name])
        for name, actor in actors.items():
            restore_state(actor, state["actors"][name])
        _load_kept(kept, state["groups"], state["chances"])
    for name, agent in net.agents.items():
        agent.present = bool(state.get("present", {}).get(name, agent.present))


def _plain_initial(initial: Any) -> Any:
    """The initial value as plain data: sizes as given, the shape of a tensor, "function" for a function."""
    if isinstance(initial, tuple | list):
        return list(initial)
    if isinstance(initial, Tensor):
        return f"tensor {list(initial.shape)}"
    return None if initial is None else "function" if callable(initial) else type(initial).__name__


def _kinds(kept: Kept) -> dict[str, str]:
    """What kind of optimiser each agent, head and predictor has."""
    return {name: type(group.optimizer).__name__ for name, group in kept.groups.items()}


def _other_weights(modules: Modules, saved: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Weights that are of another shape here, before any of them is loaded.

    Other keys are left to the modules: some hold buffers that come and go.
    """
    yield from _differences("modules", sorted(modules), sorted(saved))
    for name, module in modules.items():
        here = {key: _form(p) for key, p in module.named_parameters()}
        there = {key: _form(v) for key, v in saved.get(name, {}).items() if key in here and isinstance(v, Tensor)}
        yield from _differences(name, here, there)


def _form(weight: Tensor) -> str:
    return f"{list(weight.shape)} {str(weight.dtype).removeprefix('torch.')}"


def _other_groups(kept: Kept, saved: Mapping[str, Any], apart: Collection[str]) -> Iterator[str]:
    """States of optimisers that do not fit the optimisers here, where both sides have them."""
    for name, group in kept.groups.items():
        if name not in apart and (misfit := groups_misfit(group.optimizer, saved.get(name))):
            yield f"{name}: {misfit}"


def _without_boundaries(structure: Mapping[str, Any]) -> dict[str, Any]:
    links = [{**link, "boundary": None, "options": None} for link in structure["links"]]
    return {**structure, "links": links}


def _load(name: str, module: nn.Module, saved: Mapping[str, Any]) -> None:
    try:
        module.load_state_dict(saved)
    except Exception as error:
        raise NetworkError([f"{name}: {error}"], "the checkpoint belongs to another network") from error


def _load_kept(kept: Kept, groups: Mapping[str, Any], chances: Mapping[str, Any]) -> None:
    for name, group in kept.groups.items():
        if name in groups:
            group.optimizer.load_state_dict(groups[name])
    kept.waiting = {name: state for name, state in groups.items() if name not in kept.groups}
    for name, state in chances.items():
        kept.chance(name, 0).set_state(state)


@contextmanager
def _undone_on_failure(modules: Modules, actors: Actors, kept: Kept) -> Iterator[None]:
    """If the block fails, the network is put back as it was."""
    before = {name: copy.deepcopy(module.state_dict()) for name, module in modules.items()}
    groups = {name: copy.deepcopy(group.optimizer.state_dict()) for name, group in kept.groups.items()}
    chances = {name: chance.get_state() for name, chance in kept.chances.items()}
    before_actors = {name: (state_of(actor), set_aside(actor)) for name, actor in actors.items()}
    try:
        yield
    except BaseException:
        for name, module in modules.items():
            module.load_state_dict(before[name])
        _load_kept(kept, groups, chances)
        for name, actor in actors.items():
            state, waiting = before_actors[name]
            restore_state(actor, state)
            take_back(actor, waiting)
        raise


def _differences(where: str, here: Any, there: Any) -> Iterator[str]:
    """A line for each difference between two structures."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key in dict.fromkeys((*here, *there)):
            yield from _differences(f"{where}{'.' if where else ''}{key}", here.get(key), there.get(key))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for i, (own, other) in enumerate(zip(here, there, strict=True)):
            yield from _differences(f"{where}[{i}]", own, other)
    elif here != there:
        yield f"{where} is {here!r} here and {there!r} in the file"
