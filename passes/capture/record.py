"""The main rung: record a model, and record it twice more to see whether the recording can be believed."""

import inspect
import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .compare import difference
from .recorder import Recorder
from .recording import Recording
from .symbols import is_symbol
from .trees import HOLE, Tree, flatten
from .untouched import fresh_copies, tensor_names, untouched


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """A recording of `model(*args, **kwargs)` that two more recordings agree with.

    The first repeats the run with other Python and numpy seeds: it must be identical. The second takes one more row and
    other seeds: it may differ only behind a guard. The model is left as it was.

    Raises:
        CaptureError: the model does something that no graph can stand for, or decides by what is not in its inputs.
    """
    leaves, spec = flatten((args, kwargs))
    with untouched(model) as before:
        session = _Session(model, args, kwargs, spec, tensor_names(model))
        model(*session.call(leaves)[0], **session.call(leaves)[1])  # caches that models make on first use are there now
        before.rewind()
        first = session.record(leaves)
        before.rewind()
        _seed_others(1)
        _agree(first, session.record(leaves), "the same input")
        if (more := one_more_row(leaves)) is not None:
            before.rewind()
            _seed_others(2)
            torch.manual_seed(2)
            _agree(first, session.tried(more), "one more row")
    return first


def one_more_row(leaves: list[Any]) -> list[Any] | None:
    """The same inputs rolled by a row and with one row more; `None` where no batch dimension is in sight."""
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes or sizes[0] == 0:
        return None

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != sizes[0]:
            return leaf
        with torch.no_grad():
            more = torch.cat([leaf.roll(1, 0), leaf[:1]])
        return more.requires_grad_(leaf.requires_grad)

    return [grown(leaf) for leaf in leaves]


class _Session:
    """The recordings of one model with one kind of call."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any, spec: pytree.TreeSpec, names: dict[int, str]):
        self.model, self.spec, self.names = model, spec, names
        self.inputs = _input_names(model, args, kwargs)

    def call(self, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = pytree.tree_unflatten(fresh_copies(leaves), self.spec)
        return args, kwargs

    def record(self, leaves: list[Any]) -> Recording:
        """One recording. Where sizes serve as keys the first try dies; they are hashable, and guarded, in the second."""
        state = torch.get_rng_state()
        try:
            return self._run(leaves, hashable=False)
        except TypeError as error:
            if "unhashable type: a size" not in str(error):
                raise
        torch.set_rng_state(state)
        return self._run(leaves, hashable=True)

    def tried(self, leaves: list[Any]) -> Recording | None:
        """A recording on other sizes; `None` if the model itself does not take them."""
        try:
            return self.record(leaves)
        except Exception:
            return None

    def _run(self, leaves: list[Any], hashable: bool) -> Recording:
        args, kwargs = self.call(leaves)
        recorder = Recorder(self.model, self.names, hashable)
        for name, leaf in zip(self.inputs, pytree.tree_leaves((args, kwargs)), strict=True):
            if isinstance(leaf, torch.Tensor):
                recorder.bind(leaf, recorder.graph.placeholder(name))
        with recorder.attached():
            out = self.model(*args, **kwargs)
            with recorder.aside():
                found, out_spec = flatten(out)
            recorder.finish([v for v in found if _is_live(v)])
        constants = tuple(HOLE if _is_live(v) else v for v in found)
        return Recording(recorder.graph, "record", Tree(out_spec, constants), recorder.constants)


def _is_live(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or is_symbol(value)


def _agree(first: Recording, other: Recording | None, on: str) -> None:
    if other is not None and (place := difference(first, other)):
        raise CaptureError(
            [
                f"two recordings on {on} differ at {place}: something here is no function of the inputs "
                "(Python or numpy randomness, a counter, state kept between calls)"
            ]
        )


def _seed_others(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each input leaf: the argument's name, and its number where an argument holds several leaves."""
    known = list(inspect.signature(model.forward).parameters)
    positional = [known[i] if i < len(known) else f"input_{i}" for i in range(len(args))]
    names = []
    for name, value in [*zip(positional, args, strict=True), *kwargs.items()]:
        count = len(pytree.tree_leaves(value))
        names += [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
    return names
