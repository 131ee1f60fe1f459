"""The checkpoint of a recurrent run."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..engine.updates.misfits import groups_misfit, state_misfits
from .carried_state import Place
from .learner import Learner
from .options import Options
from .recurrent_error import RecurrentError
from .stored_windows import Stored, packed, unpacked

Modules = Mapping[str, nn.Module]


def state_of(
    modules: Modules, learner: Learner | None, options: Options, place: Place | None, stored: Sequence[Stored]
) -> dict[str, Any]:
    """Modules, optimisers, traces and the place in the stream, as plain containers of tensors."""
    groups = {} if learner is None else learner.groups
    traces = None if learner is None or learner.traces is None else learner.traces
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "groups": {
            name: {
                "kind": type(group.optimizer).__name__,
                "optimizer": group.optimizer.state_dict(),
                "schedule": type(group.scheduler).__name__ if group.scheduler else None,
                "scheduler": group.scheduler.state_dict() if group.scheduler else None,
                "gradients": [p.grad for p in group.parameters],
            }
            for name, group in groups.items()
        },
        "place": None if place is None else vars(place),
        "stored": packed(stored),
        "traces": None if traces is None else {"held": traces.held, "jacobian": traces.jacobian},
        "windows": 0 if learner is None else learner.windows,
        "options": options.plain(),
    }


def fitting(modules: Modules, learner: Learner | None, options: Options, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state, checked to be one of this model.

    Raises:
        RecurrentError: it is not; all differences are listed.
    """
    misfits, own, there = list[str](), options.plain(), state.get("options", {})
    for name in ("boundary", "warm_up", "refresh", "blend", "traces", "auxiliary"):  # they decide which state exists
        if name in there and own[name] != there[name]:
            misfits.append(f"{name}={own[name]!r} here and {there[name]!r} in the file")
    both = learner is not None and state["groups"]  # else one of them has not seen a window yet
    for name in ("core", "initial", "head", "auxiliary") if both else ("core", "initial"):
        module = modules.get(name)
        weights = {} if module is None else module.state_dict()
        misfits += [f"{name}: {line}" for line in state_misfits(weights, state["modules"].get(name, {}))]
    for name, group in ({} if learner is None else learner.groups).items():
        saved, kind = state["groups"].get(name), type(group.optimizer).__name__
        if saved is not None and saved.get("kind", kind) != kind:
            misfits.append(f"{name}: optimised by {kind} here and {saved['kind']} in the file")
        elif saved is not None and (misfit := groups_misfit(group.optimizer, saved["optimizer"])):
            misfits.append(f"{name}: {misfit}")
        schedule = type(group.scheduler).__name__ if group.scheduler else None
        if saved is not None and saved.get("schedule", schedule) != schedule:
            misfits.append(f"{name}: its schedule is {schedule} here and {saved['schedule']} in the file")
    for count in ("steps", "skipped", "windows"):
        if count in state and not (isinstance(state[count], int) and state[count] >= 0):
            misfits.append(f"its number of {count} is {state[count]!r}")
    if misfits:
        raise RecurrentError(misfits, "make the runner with the modules and options of the one that was saved")
    return dict(state)


def take_up(
    modules: Modules, learner: Learner | None, options: Options, state: Mapping[str, Any]
) -> tuple[Place | None, list[Stored]]:
    """Give modules and learner what `state_of` took of them. Returns the place in the stream, and the stored windows.

    Raises:
        RecurrentError: the run was made with other options.
    """
    fitting(modules, learner, options, state)
    if learner is not None and set(state["groups"]) != set(learner.groups):
        raise RecurrentError(
            [f"the file has optimisers for {sorted(state['groups'])}, this run for {sorted(learner.groups)}"],
            "give the same boundary= as in the run that was saved",
        )
    for name, weights in state["modules"].items():
        if name in modules:
            modules[name].load_state_dict(weights)
    place = None if state["place"] is None else Place(**state["place"])
    if learner is None:
        return place, unpacked(state["stored"])
    learner.windows = state["windows"]
    for name, group in learner.groups.items():
        saved = state["groups"][name]
        group.optimizer.load_state_dict(saved["optimizer"])
        if group.scheduler is not None and saved["scheduler"] is not None:
            group.scheduler.load_state_dict(saved["scheduler"])
        for parameter, gradient in zip(group.parameters, saved["gradients"], strict=True):
            parameter.grad = gradient
    if learner.traces is not None and state["traces"] is not None:
        learner.traces.held, learner.traces.jacobian = state["traces"]["held"], state["traces"]["jacobian"]
    return place, unpacked(state["stored"])
