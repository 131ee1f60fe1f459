"""Checkpoints: written whole or not at all, read without running code, random numbers included."""

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..passes.errors import DniGraphError
from ..passes.sandbox.rng import random_state, set_random_state

FORMAT = 1


class CheckpointError(DniGraphError, RuntimeError):
    """A file is no checkpoint, or not one of this model and these optimisers."""


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a state and all random states to a file. The file is replaced in one move, so a crash leaves the old one.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, "random": _portable(random_state()), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def load_checkpoint(path: str | os.PathLike[str], expected: set[str]) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is no checkpoint, or lacks some of the `expected` entries.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or not expected <= set(state):
        raise CheckpointError(f"{path} is no checkpoint of this kind: it lacks {sorted(expected - set(state))}")
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Go on with the random numbers of a loaded checkpoint."""
    name, keys, *rest = state["random"]["numpy"]
    numpy_state = (name, np.asarray(keys.numpy(), dtype=np.uint32), *rest)
    set_random_state({**state["random"], "numpy": numpy_state, "python": _tuples(state["random"]["python"])})


def _portable(state: dict[str, Any]) -> dict[str, Any]:
    name, keys, *rest = state["numpy"]
    return {**state, "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest)}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
