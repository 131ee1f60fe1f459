"""What keeps a saved state from being loaded, found before anything is loaded."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...boundaries.schedule import Schedule


def state_misfits(
    own: Mapping[str, Any], saved: Any, late: Collection[str] = (), varying: Collection[str] = ()
) -> list[str]:
    """One line for each entry of a model's state that is missing, strange, or a tensor of another shape or dtype.

    Args:
        own: the model's present `state_dict()`.
        saved: the one that is to be loaded.
        late: boundaries that one of the two may lack.
        varying: entries that each may have or lack, in any size.
    """
    if not isinstance(saved, Mapping):
        return [f"its model state is a {type(saved).__name__}, not a dict"]
    misfits = []
    for key in sorted(own.keys() | saved.keys(), key=str):
        here, there = _kind(own, key), _kind(saved, key)
        if here != there and key not in varying and not late_boundary(key, late):
            misfits.append(f"{key}: {here} here, {there} in the file")
    return misfits


def late_boundary(key: str, late: Collection[str]) -> bool:
    """Whether an entry of a state dict belongs to one of some boundaries."""
    return any(f".{name}." in key for name in late)


def settings_misfits(own: Mapping[str, Mapping[str, Any]], saved: Any) -> list[str]:
    """One line for each option of a boundary that is another one in the file. Both: options by boundary."""
    if not isinstance(saved, Mapping):
        return ["it does not say what its boundaries were made with"]
    misfits = []
    for name in sorted(own.keys() & saved.keys()):
        here, there = own[name], saved[name] if isinstance(saved[name], Mapping) else {}
        there = {**asdict(Schedule()), **there}  # files of before have it of some boundaries only
        for option in sorted(here.keys() | there.keys()):
            if here.get(option) != there.get(option):
                value = here.get(option)
                misfits.append(f"boundary {name}: {option}={value!r} here, {there.get(option)!r} in the file")
    return misfits


def optimizer_misfits(name: str, optimizer: torch.optim.Optimizer, scheduler: Any, saved: Any) -> list[str]:
    """One line for each way in which the saved state of one optimiser and its schedule is not one of these.

    Args:
        name: the part or boundary that is optimised.
        saved: {"kind": ..., "optimizer": ..., "schedule": ..., "scheduler": ...}, as `Updates.state_dict` writes it.
    """
    if not isinstance(saved, Mapping) or not saved.keys() >= {"kind", "optimizer", "schedule", "scheduler"}:
        return [f"{name}: what the file has of its optimiser is no such state"]
    misfits, kind = [], type(optimizer).__name__
    schedule = type(scheduler).__name__ if scheduler else None
    if saved["kind"] != kind:
        misfits.append(f"{name}: optimised by {kind} here, by {saved['kind']} in the file")
    if saved["schedule"] != schedule:
        misfits.append(f"{name}: its schedule is {schedule} here, {saved['schedule']} in the file")
    if not misfits and (problem := groups_misfit(optimizer, saved["optimizer"])):
        misfits.append(f"{name}: {problem}")
    return misfits


def groups_misfit(optimizer: torch.optim.Optimizer, saved: Any) -> str | None:
    """What is wrong with the groups and states of an optimiser's state dict; None: nothing."""
    if not isinstance(saved, Mapping) or not saved.keys() >= {"state", "param_groups"}:
        return "what the file has of its optimiser is no state dict"
    own, theirs = optimizer.param_groups, saved["param_groups"]
    sizes = [len(group["params"]) for group in own], [len(group["params"]) for group in theirs]
    if sizes[0] != sizes[1]:
        return f"its optimiser has groups of {sizes[0]} parameters here, of {sizes[1]} in the file"
    if lacking := sorted({key for one, other in zip(own, theirs, strict=True) for key in one.keys() - other.keys()}):
        return f"the options {', '.join(lacking)} of its optimiser are not in the file"
    shapes = dict(enumerate(p.shape for group in own for p in group["params"]))
    for index, state in saved["state"].items():
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, Tensor) and value.ndim and value.shape != shapes.get(index):
                return f"{key} of its parameter {index} is {list(value.shape)} in the file, for {list(shapes[index])}"
    return None


def _kind(state: Mapping[str, Any], key: str) -> str:
    if key not in state:
        return "missing"
    value = state[key]
    return f"{list(value.shape)} {str(value.dtype)[6:]}" if isinstance(value, Tensor) else type(value).__name__
