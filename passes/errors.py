"""Every error a user can meet: one root, one class per cause, all misfits at once, the facts kept as attributes."""

import difflib
from collections.abc import Iterable, Sequence


class DniGraphError(Exception):
    """The root of all errors of this library."""


class CutError(DniGraphError, ValueError):
    """The cuts do not fit the model. `misfits` lists every one of them."""

    def __init__(self, misfits: Sequence[str], what: str = "cut", where: str = "the model"):
        self.misfits = tuple(misfits)
        do = "does" if len(self.misfits) == 1 else "do"
        super().__init__(f"{_count(self.misfits, what)} {do} not fit {where}:" + bullets(self.misfits))


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


class GuardMiss(DniGraphError, RuntimeError):
    """A recorded graph does not hold for this input: Python would have taken another path."""


def bullets(lines: Iterable[str]) -> str:
    """The lines as a list, each on its own line behind a star."""
    return "".join(f"\n  * {line}" for line in lines)


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """The known names nearest to `name`, as the tail of a message; empty where nothing is near."""
    found = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=count, cutoff=0.4)
    return f"; nearest: {', '.join(found)}" if found else ""


def _count(things: Sequence[str], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


class Restless(CaptureError):
    """The model decides by what is not in its inputs: randomness of Python or numpy, a counter, state between calls.

    No graph can stand for its next call, whoever makes it.
    """


class Unready(CaptureError):
    """The first call makes the model what it is. The user has but to make that call."""
