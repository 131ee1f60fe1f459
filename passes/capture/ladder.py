"""The capture ladder: ways to turn a model into a graph, and the climb along them, the best one first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import CaptureError, CutError, DniGraphError, FirstCallError, StatefulModelError, nearest
from ..graph.captured_graph import CapturedGraph
from ..graph.pytrees import Tree, flatten
from ..sandbox.runs import model_call
from ..sandbox.snapshot import fresh_copies, untouched
from .export import export
from .module_graph import observe
from .record.record import record
from .symbolic import trace


@dataclass(frozen=True)
class Rung:
    """A way to turn a model and one call of it into a graph."""

    name: str
    capture: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], CapturedGraph]
    needs_example: bool = True
    whole_arguments: bool = False  # the graph's inputs are the arguments of `forward`, not the tensors in them
    runs_whole: bool = False  # the graph says what feeds what but cannot be run: the model itself runs


def _symbolic(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    with untouched(model):
        return trace(model)


def _hooks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CapturedGraph:
    nothing = Tree(flatten(())[1], ())  # the graph is never run, so no results are built from it
    return CapturedGraph(observe(model, args, kwargs), "hooks", nothing)


RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung("record", record),
        Rung("export", export),
        Rung("symbolic", _symbolic, needs_example=False, whole_arguments=True),
        Rung("hooks", _hooks, runs_whole=True),
    )
}
# What "auto" tries, in this order. A symbolic trace loses regions such as autocast unseen, so it must be asked for.
LADDER = ("record", "export", "hooks")


class Climb:
    """The rungs to try in order, and why each one before the present one was refused.

        climb = Climb("auto", model, args, kwargs)
        for rung in climb:
            with climb.attempt(rung):
                return rung.capture(model, args, kwargs)
        raise climb.failure()

    Args:
        args, kwargs: an example call; None: there is none.

    Raises:
        CaptureError: there is no such rung.
    """

    def __init__(self, how: str, model: nn.Module, args: Any, kwargs: Any):
        if not isinstance(how, str) or (how != "auto" and how not in RUNGS):
            raise CaptureError(
                [f"there is no capture {how!r}; there are auto, {', '.join(RUNGS)}{nearest(how, RUNGS)}"]
            )
        self.rungs = [*map(RUNGS.__getitem__, LADDER)] if how == "auto" else [RUNGS[how]]
        self.reasons: list[str] = []  # one line each, with the rung's name
        self._example = None if args is None else (model, args, kwargs)
        self._left = list(self.rungs)
        self._misfit: CutError | None = None
        self._cause: Exception | None = None

    def __iter__(self) -> Iterator[Rung]:
        while self._left:
            yield self._left.pop(0)

    @contextmanager
    def attempt(self, rung: Rung) -> Iterator[None]:
        """Take note of the reason where the rung does not do, so that the climb can go on.

        An error of a foreign kind is such a reason too, if the model itself runs.

        Raises:
            CutError: the cuts fit neither this rung nor one above it.
        """
        try:
            yield
        except CaptureError as error:
            self._cause = error
            self.reasons += [f"{rung.name}: {reason}" for reason in error.reasons]
            if isinstance(error, FirstCallError):
                self._left = []
            elif isinstance(error, StatefulModelError):
                self._left = [other for other in self._left if other.runs_whole]
        except CutError as error:
            # A lower rung may see modules that this one does not see. The first rung sees all that there are.
            if rung is self.rungs[-1] or not self.reasons:
                raise self._misfit or error from None
            self._misfit = error
            self.reasons.append(f"{rung.name}: {'; '.join(error.misfits)}")
        except DniGraphError:
            raise
        except Exception as error:
            if self._example is None or not _runs(*self._example):
                raise
            self._cause = error
            line = next(iter(str(error).splitlines()), "")
            self.reasons.append(f"{rung.name}: {type(error).__name__}: {line}")

    def failure(self) -> CaptureError:
        """The error to raise when no rung is left, with the cause of the last reason as its own."""
        error = CaptureError(self.reasons)
        error.__cause__ = self._cause
        return error


def _runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a model runs, by itself, on copies of its arguments."""
    leaves, spec = flatten((args, kwargs))
    try:
        with untouched(model, leaves):
            model_call(model, spec)(fresh_copies(leaves))
    except Exception:
        return False
    return True


def capture(
    model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None, how: str = "auto"
) -> CapturedGraph:
    """The first graph that a rung makes of `model(*args, **kwargs)` and that can be run, in the model's present mode.

    Raises:
        CaptureError: no rung can; with one line for each that was tried. A model that decides by what is not in its
            inputs ends the climb: no graph holds for its next call.
    """
    climb = Climb(how, model, args, kwargs)
    if args is None and kwargs is None and all(rung.needs_example for rung in climb.rungs):
        raise CaptureError(["it needs one example call: pass example_args=(x,), or capture='symbolic' to do without"])
    for rung in climb:
        if not rung.runs_whole:
            with climb.attempt(rung):
                return rung.capture(model, args or (), kwargs or {})
    raise climb.failure()
