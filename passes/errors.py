"""Every error a user can meet: one root, one class per cause, all misfits at once, the facts kept as attributes."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard


class DniGraphError(Exception):
    """The root of all errors of this library."""


class CutError(DniGraphError, ValueError):
    """The cuts do not fit the model. `misfits` lists every one of them."""

    def __init__(self, misfits: Sequence[str], what: str = "cut", where: str = "the model"):
        self.misfits = tuple(misfits)
        subject = f"1 {what} does" if len(self.misfits) == 1 else f"{len(self.misfits)} {what}s do"
        super().__init__(f"{subject} not fit {where}:" + bullets(self.misfits))


class PlanError(DniGraphError, ValueError):
    """A plan and a graph do not belong together. `misfits` lists every difference."""

    def __init__(self, misfits: Sequence[str]):
        self.misfits = tuple(misfits)
        super().__init__("the plan does not fit the graph:" + bullets(self.misfits))


class CaptureError(DniGraphError, RuntimeError):
    """No graph can stand for this model. `reasons` says why, one line for each way that was tried."""

    def __init__(self, reasons: Sequence[str]):
        self.reasons = tuple(reasons)
        super().__init__("the model cannot be captured:" + bullets(self.reasons))


class StatefulModelError(CaptureError):
    """The model's next call depends on more than its inputs: Python's or numpy's randomness, a counter, kept state.

    No graph can stand for that call, whichever rung captures it.
    """


class FirstCallError(CaptureError):
    """The first call completes the model (lazy layers, hooks for one call): the user has to make that call before."""


class GuardMiss(DniGraphError, RuntimeError):
    """A captured graph does not hold for this input: Python would have taken another path."""


class CheckpointError(DniGraphError, RuntimeError):
    """A file or a state is no checkpoint, or not one of this model and these optimisers."""


def bullets(lines: Iterable[str]) -> str:
    """The lines as a list, each on its own line behind a star."""
    return "".join(f"\n  * {line}" for line in lines)


def nearest(name: object, names: Iterable[object], count: int = 3) -> str:
    """The known names nearest to `name`, as the tail of a message; empty where none is near."""
    name, known = str(name), [*dict.fromkeys(map(str, names))]
    close = [other for other in known if other.endswith(f".{name}")]  # a wrapper has put a word in front
    close += [n for n in difflib.get_close_matches(name, known, n=count, cutoff=0.4) if n not in close]
    close = close[:count]
    return f"; nearest: {', '.join(close)}" if close else ""


def is_whole(value: Any, least: int = 0) -> TypeGuard[int]:
    """Whether an argument is a whole number from `least` on. Python's truths are integers, and are meant by nobody."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether an argument is a plain number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
