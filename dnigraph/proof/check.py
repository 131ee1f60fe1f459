"""The proof of a rewrite: the same numbers out, the same buffers, and with an oracle the same gradients."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries import Boundary, CrossingSpec, Seen, Visit
from ..decoupled.module import DecoupledModule, in_mode
from ..heads.conditions import Context
from ..passes.errors import DniGraphError, bullets
from ..passes.graph.equality import equal
from ..passes.graph.own_names import GraphModule
from ..passes.graph.pytrees import flatten
from ..passes.sandbox.journal import all_or_nothing
from ..passes.sandbox.runs import BackwardError, Run, Sends, largest, model_call, near, observe, send_all, unequal
from ..passes.sandbox.snapshot import fresh_copies, one_at_a_time, untouched


@dataclass(frozen=True)
class Finding:
    """One thing that was compared."""

    mode: str  # "train" or "eval"
    what: str  # "run" (only if it fails), "outputs", "buffers", "random numbers", "oracle gradients", "separation"
    right: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All that `check` compared. `print(report)` shows it."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def right(self) -> bool:
        """Whether everything agreed."""
        return all(f.right for f in self.findings)

    @property
    def worst(self) -> str:
        """The first thing that did not agree, in a line."""
        return next((f"{f.what} in {f.mode} mode: {f.detail}" for f in self.findings if not f.right), "nothing")

    def __str__(self) -> str:
        head = f"check of {self.model}: {'the same function' if self.right else 'NOT the same function'}"
        return head + bullets(f"{f.mode:5}  {'ok ' if f.right else 'BAD'}  {f.what}: {f.detail}" for f in self.findings)


class CheckError(DniGraphError, AssertionError):
    """The rewritten model is not the same function. `report` holds everything that was compared."""

    def __init__(self, report: Report):
        self.report = report
        super().__init__(str(report))


@all_or_nothing
def check(dm: DecoupledModule, *args: Any, **kwargs: Any) -> Report:
    """Prove on one input that the decoupled model computes what the model computes, in train and in eval mode.

    Compared are: the results and their types, bitwise, under the same random state; the buffers and the random state
    afterwards; with an oracle on every crossing, the gradient of each parameter and input; and with nothing but zeros
    handed down, that no gradient comes past a boundary. The model is left as it was, gradients included.

    Raises:
        CheckError: something differs. The message names the first part that does.
        DniGraphError: there is no decoupled model, or the call does not fit it.
    """
    refuse_call("check", dm, args, kwargs)
    with told("the call"):
        return checked(dm, *args, **kwargs)


def checked(dm: DecoupledModule, *args: Any, **kwargs: Any) -> Report:
    """The same; what the model itself raises comes as it is."""
    findings: list[Finding] = []
    for mode in ("train", "eval"):
        with one_at_a_time, in_mode(dm, training=mode == "train"), torch.enable_grad():
            findings += _compare(dm, mode, args, kwargs)
    report = Report(dm.plan.model, tuple(findings))
    if not report.right:
        raise CheckError(report)
    return report


def refuse_call(what: str, dm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what is no decoupled model, and a call that does not fit its signature.

    Raises:
        DniGraphError: with the way out.
    """
    if not isinstance(dm, DecoupledModule):
        kind = dm.__name__ if isinstance(dm, type) else type(dm).__name__
        raise DniGraphError(f"{what} takes what dg.decouple(model, cuts, x) returns, not {kind}")
    signature = inspect.signature(dm.original.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        words = f"{what} takes the decoupled model and one call of it, {what}(dm, ...) with {signature}"
        raise DniGraphError(f"{words}: {error}") from error


@contextmanager
def told(what: str) -> Iterator[None]:
    """What the model or a loss raises inside the block comes as an error of this library.

    Raises:
        DniGraphError: with the cause.
    """
    try:
        yield
    except DniGraphError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        raise DniGraphError(f"{what} fails: {type(error).__name__}: {line}") from error


def _compare(dm: DecoupledModule, mode: str, args: Any, kwargs: Any) -> Iterator[Finding]:
    leaves, spec = flatten((args, kwargs))

    def run(module: nn.Module, sends: Sends) -> Run:
        with untouched(dm.original, leaves) as before:
            return observe(model_call(module, spec), dm.original, leaves, sends, before)

    plain, sends = _plain_run(lambda sends: run(dm.original, sends))
    dm.prepare(*args, **kwargs)
    try:
        with dm.standing_in(lambda _: StandIn("oracle")):
            ours = run(dm, sends)
    except DniGraphError:
        raise
    except Exception as error:  # the model itself has just run
        reason = str(error).partition("\n")[0]
        yield Finding(mode, "run", False, f"the model runs, its parts fail: {type(error).__name__}: {reason}")
        return
    agrees = plain.structure == ours.structure and equal(plain.results, ours.results)
    yield _outputs(mode, plain, ours, None if agrees else _first_difference(dm, args, kwargs))
    wrong = unequal(plain.buffers, ours.buffers)
    words = f"differ after the run: {', '.join(wrong[:5])}" if wrong else f"{len(plain.buffers)} bitwise equal"
    yield Finding(mode, "buffers", not wrong, words)
    yield Finding(
        mode, "random numbers", torch.equal(plain.random, ours.random), "the generator stands where it should"
    )
    yield _gradients(dm, mode, plain, ours)
    if mode == "train" and dm.boundaries:
        with dm.standing_in(lambda _: StandIn("zeros")):
            yield _separation(dm, mode, run(dm, sends), lambda: run(dm, lambda at: 2 * sends(at)))


class StandIn(Boundary):
    """Stands in for every boundary during a check: hands back the target, or zeros."""

    def __init__(self, kind: str):
        super().__init__(CrossingSpec("stand-in", (), torch.float32, torch.device("cpu")), Context())
        self.kind = kind

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        if self.kind == "oracle":
            return Visit((value,), None, lambda target: (target,))
        return Visit((value,), (torch.zeros_like(value),), lambda target: (None,))

    def extra_repr(self) -> str:
        return self.kind


def _plain_run(run: Callable[[Sends], Run]) -> tuple[Run, Sends]:
    """The model's own run, and from which results it sends a gradient back: from all, where that can be done.

    A model may return what it writes to later, or has sent a gradient through already. Then those results send one back
    that can do so together.
    """
    with suppress(BackwardError):
        return run(send_all), send_all
    best, chosen = run(lambda at: 0.0), set[int]()
    for at in best.differentiable:
        with suppress(BackwardError):
            best = run(lambda other, tried=frozenset({*chosen, at}): float(other in tried))  # type: ignore[misc]
            chosen.add(at)
    return best, lambda at: float(at in chosen)


def _outputs(mode: str, plain: Run, ours: Run, first: str | None) -> Finding:
    if plain.structure != ours.structure:
        words = f"another structure: {ours.structure} instead of {plain.structure}"
        return Finding(mode, "outputs", False, words)
    if first is None:
        return Finding(mode, "outputs", True, f"{len(plain.results)} bitwise equal")
    apart = max((_distance(x, y) for x, y in zip(plain.results, ours.results, strict=True)), default=0.0)
    return Finding(mode, "outputs", False, f"apart by {apart:.3g}; {first}")


def _gradients(dm: DecoupledModule, mode: str, plain: Run, ours: Run) -> Finding:
    """Per parameter: equal up to the rounding of sums in another order, relative to the largest gradient nearby."""
    inexact = [name for name in unequal(plain.gradients, ours.gradients) if name in plain.gradients]
    overall = max(map(largest, plain.gradients.values())) if inexact else 0.0
    wrong = {}
    for name in inexact:
        expected, actual = plain.gradients[name], ours.gradients.get(name)
        x, y = _zeros_for_none(expected, actual), _zeros_for_none(actual, expected)
        # A gradient far smaller than the others is a difference of large numbers: its own size says nothing.
        if not near(x, y, scale=max(largest(x), 1e-3 * overall)):
            wrong[name] = _distance(x, y)
    if not wrong:
        total = len(plain.gradients)
        words = f"{total - len(inexact)} of {total} bitwise equal, none apart"
        return Finding(mode, "oracle gradients", True, words)
    worst = max(wrong, key=lambda name: wrong[name])
    place = dict(dm.original.named_parameters()).get(worst)
    owners = {id(q): part for part, own in dm.parameters_of_parts().items() for q in own}
    part = "an input" if place is None else owners.get(id(place), "no part")
    words = f"{len(wrong)} apart, most: {worst} by {wrong[worst]:.3g}; first seen in {part}"
    return Finding(mode, "oracle gradients", False, words)


def _zeros_for_none(gradient: Tensor | None, other: Tensor | None) -> Tensor | None:
    return torch.zeros_like(other) if gradient is None and other is not None else gradient


def _separation(dm: DecoupledModule, mode: str, zeros: Run, doubled: Callable[[], Run]) -> Finding:
    """Behind boundaries that hand down zeros nothing of what the results send back may arrive.

    What arrives there whatever they send was made below: an autograd function may add a gradient of its own.
    """
    own = dm.parameters_below()
    below = [name for name in zeros.gradients if name in own]
    leaks = [n for n in below if largest(zeros.gradients.get(n))]
    if leaks:
        other = doubled().gradients
        leaks = [n for n in leaks if not equal(zeros.gradients[n], other.get(n))]
    words = f"{len(below)} parameters below the cuts hear from their boundaries alone"
    if leaks:
        words = f"gradients leak past the cuts to {', '.join(leaks[:5])}"
    return Finding(mode, "separation", not leaks, words)


def _first_difference(dm: DecoupledModule, args: Any, kwargs: Any) -> str:
    """The first module call whose result differs between the model and the parts, and the part that it is in."""
    leaves, spec = flatten((args, kwargs))

    def calls(run: nn.Module, watched: dict[nn.Module, str]) -> list[tuple[str, Tensor]]:
        results: list[tuple[str, Tensor]] = []

        def note(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                results.append((watched[module], out.detach().clone()))

        with untouched(dm.original):  # with gradients, as before: without, other graphs would run; the hooks go with it
            for module in watched:
                if not any(module.children()):
                    module.register_forward_hook(note)
            model_call(run, spec)(fresh_copies(leaves))
        return results

    places = {(part, path): m for part, p in dm.parts.items() for path, m in _called(p)}
    plain = calls(dm.original, {m: path for path, m in dm.original.named_modules()})
    ours = calls(dm, {m: f"'{path}', in {part}" for (part, path), m in places.items()})
    for (path, x), (place, y) in zip(plain, ours, strict=False):
        if f"'{path}'" != place.partition(",")[0] or not equal(x, y):
            return f"first at {place}"
    return "every module agrees, a function between them does not"


def _called(part: GraphModule) -> list[tuple[str, nn.Module]]:
    """The modules that a part calls, with their paths in the model, in order."""
    names = [str(node.target) for node in part.graph.nodes if node.op == "call_module"]
    return [(part.paths.get(name, name), getattr(part, name)) for name in names]


def _distance(x: Any, y: Any) -> float:
    """The largest difference of two results; infinite where they are no tensors of one shape."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape:
        return 0.0 if equal(x, y) else float("inf")
    if not x.numel() or x.is_complex():
        return float(not equal(x, y))
    return largest(x.double() - y.double())
