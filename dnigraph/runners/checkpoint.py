"""Checkpoints: written whole or not at all, read without running code, random numbers included."""

import os
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..passes.errors import CheckpointError, DniGraphError
from ..passes.sandbox.rng import random_state, set_random_state
from .archive import expanded, lock, look, remove_abandoned

FORMAT = 1
KINDS = {"network": "Network", "recurrent": "Recurrent", "updates": "Local"}  # by an entry that only its files have


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state and all random states to a file. The file is replaced in one move, so a crash leaves the old one.

    What a process that was killed in the middle of this has left beside the file is removed.

    Raises:
        CheckpointError: the path is none, is a folder, or lies in a folder that does not exist.
        OSError: the folder cannot be written, or is full.
    """
    target = _path(path)
    if target.is_dir():
        raise CheckpointError(f"{target} is a folder: name a file in it, {str(target / 'run.pt')!r}")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
    remove_abandoned(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            lock(file)
            torch.save({"format": FORMAT, "random": portable_random(), **state}, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(name, target)  # while it is locked: nobody takes it for an abandoned one
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_checkpoint(path: str | os.PathLike[str], expected: set[str]) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote.

    Raises:
        CheckpointError: there is no such file, it is no checkpoint, or it lacks some of the `expected` entries.
    """
    file = _path(path)
    if misfit := look(file):
        raise CheckpointError(f"{file} {misfit}")
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"{file} is no checkpoint: {type(error).__name__}: {_first_line(error)}") from error
    if misfit := _misfit(state, expected) or expanded(state, file.stat().st_size):
        raise CheckpointError(f"{file} is no checkpoint of this kind: {misfit}")
    return state  # type: ignore[no-any-return]  # `_misfit` has seen that it is a dict


@contextmanager
def taken_up(path: str | os.PathLike[str]) -> Iterator[None]:
    """The block takes up what a file holds; an error that is none of this library's becomes a `CheckpointError`.

    Raises:
        CheckpointError: what the file holds has not the form that `save` writes.
    """
    try:
        yield
    except DniGraphError:
        raise
    except Exception as error:
        words = f"what it holds has not the form that save writes: {type(error).__name__}: {_first_line(error)}"
        raise CheckpointError(f"{path} cannot be loaded: {words}") from error


def portable_random() -> dict[str, Any]:
    """The present random states, as a checkpoint keeps them."""
    return _portable(random_state())


def restore_random(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers of a loaded checkpoint."""
    set_random_state(_random(state["random"]))


def _path(path: Any) -> Path:
    if isinstance(path, str | os.PathLike) and str(path) and "\0" not in str(path):
        return Path(path)
    raise CheckpointError(f"{path!r} is no path of a checkpoint: give a file's name, 'run.pt'")


def _misfit(state: Any, expected: set[str]) -> str | None:
    """Why this is no state of `save_checkpoint` with these entries; None: it is one."""
    if not isinstance(state, dict) or "format" not in state:
        kind = f"it holds a {type(state).__name__}"
        names = f" with {', '.join(map(str, list(state)[:6])) or 'nothing'}" if isinstance(state, dict) else ""
        return f"{kind}{names}, not what save(...) of this library writes"
    if state["format"] != FORMAT:
        return f"its format is {state['format']!r}, and this version of the library reads {FORMAT}"
    if lacking := sorted({"random", *expected} - set(state)):
        other = next((kind for entry, kind in KINDS.items() if entry in state), None)
        return f"it lacks {', '.join(lacking)}" + (f"; it is one of dg.{other}" if other else "")
    try:  # on generators of its own: nothing is changed before all has been looked at
        found = _random(state["random"])
        torch.Generator().set_state(found["torch"])
        random.Random().setstate(found["python"])
        np.random.RandomState().set_state(found["numpy"])  # the kind that models draw from
    except Exception as error:
        return f"its random states are none: {type(error).__name__}: {_first_line(error)}"
    return None


def _random(state: Mapping[str, Any]) -> dict[str, Any]:
    """Random states as `set_random_state` takes them, from what `_portable` made of them."""
    name, keys, *rest = state["numpy"]
    numpy_state = (name, np.asarray(keys.numpy(), dtype=np.uint32), *rest)
    return {**state, "numpy": numpy_state, "python": _tuples(state["python"])}


def _portable(state: dict[str, Any]) -> dict[str, Any]:
    name, keys, *rest = state["numpy"]
    return {**state, "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest)}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
