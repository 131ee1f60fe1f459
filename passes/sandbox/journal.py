"""What is changed for a while is taken back, also where Ctrl-C comes in between, at whatever line.

    @all_or_nothing        notes how torch stands ─► runs ─► takes back what is still open, twice
    with undone(undo):     notes `undo` in the journal ─► block ─► undo ─► strikes it from the journal

Python may raise KeyboardInterrupt at any line, also in an `__exit__` or a `finally`: there a `with` block gives up. So
every change is noted before it is made, and the function on the outside takes back what is left in the journal.
"""

import contextlib
import functools
import gc
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from ..graph.nodes import Mode

P = ParamSpec("P")
R = TypeVar("R")
Undo = Callable[[], Any]  # may run twice
_PATCHED = ("__call__", "__getattr__", "__setattr__", "__delattr__")  # of nn.Module, by torch's own tracers


class _Journal(threading.local):
    """What this thread has to take back, in the order in which it was changed."""

    def __init__(self) -> None:
        self.open: list[functools.partial[Any]] = []


_journal = _Journal()


def note(undo: Undo) -> "functools.partial[Any]":
    """Note how a change is taken back, before it is made."""
    entry = functools.partial(undo)
    _journal.open.append(entry)
    return entry


def is_noted(entry: "functools.partial[Any]") -> bool:
    """Whether an entry still is in the journal: nobody has taken its change back."""
    return any(one is entry for one in _journal.open)


def strike(entry: "functools.partial[Any]") -> None:
    """Strike an entry from the journal, if it is there."""
    _journal.open[:] = [one for one in _journal.open if one is not entry]


@contextlib.contextmanager
def undone(undo: Undo) -> Iterator[None]:
    """Run the block, then undo what it changed."""
    entry = note(undo)
    try:
        yield
    except BaseException:
        if is_noted(entry):
            _undo(_journal.open.index(entry) + 1)  # what an interrupt left open inside of the block
        raise
    finally:
        if is_noted(entry):  # else this is a block that was left long ago
            entry()
            strike(entry)


def all_or_nothing(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function leave torch, and all that it noted in the journal, as it was, whatever is raised, and where."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        count, before = len(_journal.open), _TorchState(sys.exception())
        try:
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                _end_blocks(interrupt)
                raise
            finally:
                _take_back(count, before)
        finally:  # Ctrl-C in the lines above
            _take_back(count, before)

    return run


def _end_blocks(interrupt: BaseException) -> None:
    """End the blocks of other libraries that an interrupt left open, now: else they would end when they are freed."""
    error: BaseException | None = interrupt
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def _undo(count: int) -> None:
    """Undo all but the first entries of the journal, the last one first."""
    while len(_journal.open) > count:
        _journal.open[-1]()
        _journal.open.pop()


def _take_back(count: int, before: "_TorchState") -> None:
    """Undo what is open, and let torch stand as before."""
    if sys.exception() is before.exception and len(_journal.open) == count:
        return
    before.restore()
    _undo(count)
    before.restore()  # what was taken back may have been a state inside of another


class _TorchState:
    """How torch stands: its functions, what listens to its calls, its modes, and Python's filters of warnings.

    Args:
        exception: that the caller handles just now, in an `except` block: it is no failure of what comes.
    """

    def __init__(self, exception: BaseException | None = None) -> None:
        self.exception = exception
        self.functions = {name: vars(nn.Module)[name] for name in _PATCHED}
        self.function_modes = torch._C._len_torch_function_stack()
        self.dispatch_modes = torch._C._len_torch_dispatch_stack()
        self.transforms = torch._C._functorch.get_dynamic_layer_stack_depth()
        self.mode, self.filters = Mode.now(), warnings.filters[:]
        self.stance = getattr(_frames(), "_stance", None)

    def restore(self) -> None:
        """Set what is other now."""
        for name, function in self.functions.items():
            if vars(nn.Module)[name] is not function:
                setattr(nn.Module, name, function)
        while torch._C._len_torch_function_stack() > self.function_modes:
            torch._C._pop_torch_function_stack()
        while torch._C._len_torch_dispatch_stack() > self.dispatch_modes:
            torch._C._pop_torch_dispatch_stack(None)
        if torch._C._functorch.get_dynamic_layer_stack_depth() > self.transforms:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self.transforms)
        if Mode.now() != self.mode:
            self.mode.set()
        if warnings.filters != self.filters:
            warnings.filters[:] = self.filters  # type: ignore[index]  # a list, whatever the stubs say
            warnings._filters_mutated()  # type: ignore[attr-defined]  # as `catch_warnings` does it
        frames = _frames()
        if self.stance is not None and frames._stance is not self.stance:
            frames._stance = self.stance


def _frames() -> Any:
    """Dynamo's module that knows its stance; None: nobody has imported it yet."""
    return sys.modules.get("torch._dynamo.eval_frame")
