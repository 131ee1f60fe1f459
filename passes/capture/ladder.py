"""The capture ladder: ways to turn a model into a graph, best first, each put to the test against the model."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import CaptureError, Restless, Unready, nearest
from ..graph.captured_graph import CapturedGraph
from ..sandbox.snapshot import untouched
from .export import export
from .module_graph import RUNG as HOOKS
from .record.record import record
from .symbolic import trace

Rung = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], CapturedGraph]


def _symbolic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    with untouched(model):
        return trace(model)


RUNGS: dict[str, Rung] = {"record": record, "export": export, "symbolic": _symbolic}
# What "auto" tries, in this order; a symbolic trace loses regions unseen, so it must be asked for.
LADDER = ("record", "export")


def rungs(how: str) -> tuple[str, ...]:
    """The rungs to try, in order. "auto" is the whole ladder, hooks at its end.

    Raises:
        CaptureError: there is no such rung.
    """
    known = (*RUNGS, HOOKS)
    if how != "auto" and how not in known:
        raise CaptureError([f"there is no capture {how!r}; there are auto, {', '.join(known)}{nearest(how, known)}"])
    return (*LADDER, HOOKS) if how == "auto" else (how,)


def capture(
    model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None, how: str = "auto"
) -> CapturedGraph:
    """The first graph that a rung of the ladder makes of `model(*args, **kwargs)`, in the mode the model is in.

    Raises:
        CaptureError: no rung can; with one line for each that was tried. A model that decides by what is not in its
            inputs ends the climb: no graph holds for its next call.
    """
    if args is None and kwargs is None and how != "symbolic":
        raise CaptureError(["it needs one example call: pass example_args=(x,), or capture='symbolic' to do without"])
    reasons: list[str] = []
    for name in rungs(how):
        if name == HOOKS:
            continue
        try:
            return RUNGS[name](model, args or (), kwargs or {})
        except CaptureError as error:
            reasons += [f"{name}: {reason}" for reason in error.reasons]
            if isinstance(error, Restless | Unready):
                raise type(error)(reasons) from error
    raise CaptureError(reasons)
