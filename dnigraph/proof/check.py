"""The proof of a rewrite: the same numbers out, the same buffers, and with an oracle the same gradients."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..boundaries import Boundary, CrossingSpec, Visit
from ..decoupled.module import DecoupledModule, in_mode
from ..heads.conditions import Context
from ..passes.errors import DniGraphError, bullets
from ..passes.graph.equality import equal_tensors
from ..passes.graph.pytrees import flatten, unflatten
from ..passes.sandbox.snapshot import fresh_copies, one_at_a_time, tensor_names, untouched


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


@dataclass
class _Trace:
    """What one forward and backward pass left behind."""

    leaves: list[Any]
    spec: Any
    carry: list[int]  # the leaves that a gradient comes back from
    buffers: dict[str, Tensor]
    random: Tensor
    gradients: dict[str, Tensor | None]


def check(dm: DecoupledModule, *args: Any, **kwargs: Any) -> Report:
    """Prove on one input that the decoupled model computes what the model computes, in train and in eval mode.

    Compared are: the results and their types, bitwise, under the same random state; the buffers and the random state
    afterwards; with an oracle on every crossing, the gradient of each parameter and input; and with nothing but zeros
    handed down, that no gradient comes past a boundary. The model is left as it was, gradients included.

    Raises:
        CheckError: something differs. The message names the first part that does.
    """
    findings: list[Finding] = []
    for mode in ("train", "eval"):
        with one_at_a_time, in_mode(dm, training=mode == "train"), torch.enable_grad():
            findings += _compare(dm, mode, args, kwargs)
    report = Report(dm.plan.model, tuple(findings))
    if not report.right:
        raise CheckError(report)
    return report


def _compare(dm: DecoupledModule, mode: str, args: Any, kwargs: Any) -> Iterator[Finding]:
    leaves, spec = flatten((args, kwargs))

    def trace(run: nn.Module, sends: Sends = _all) -> _Trace:
        with untouched(dm.original) as before:
            found, names = _trace(run, dm.original, fresh_copies(leaves), spec, sends), tensor_names(dm.original)
            written = {names[id(t)]: t.detach().clone() for t in before.changed() if id(t) in names}
            found.buffers.update(written)  # a forward may write to weights and plain tensors, too
            return found

    plain, sends = _plain(lambda chosen: trace(dm.original, chosen))
    dm.prepare(*args, **kwargs)
    try:
        with dm.standing_in(lambda _: StandIn("oracle")):
            ours = trace(dm, sends)
    except DniGraphError:
        raise
    except Exception as error:  # the model itself has just run
        said = str(error).partition("\n")[0]
        yield Finding(mode, "run", False, f"the model runs, its parts fail: {type(error).__name__}: {said}")
        return
    first = None if _same_leaves(plain, ours) else _first_difference(dm, args, kwargs)
    yield _outputs(mode, plain, ours, first)
    yield _buffers(mode, plain, ours)
    yield Finding(
        mode, "random numbers", torch.equal(plain.random, ours.random), "the generator stands where it should"
    )
    yield _gradients(dm, mode, plain, ours)
    if mode == "train" and dm.boundaries:
        with dm.standing_in(lambda _: StandIn("zeros")):
            yield _separation(dm, mode, trace(dm, sends), lambda: trace(dm, lambda at: 2 * sends(at)))


class StandIn(Boundary):
    """Stands in for every boundary during a check: hands back the target, or zeros."""

    def __init__(self, kind: str):
        super().__init__(CrossingSpec("stand-in", (), torch.float32, torch.device("cpu")), Context())
        self.kind = kind

    def visit(self, value: Tensor) -> Visit:
        if self.kind == "oracle":
            return Visit((value,), None, lambda target: (target,))
        return Visit((value,), (torch.zeros_like(value),), lambda target: (None,))

    def extra_repr(self) -> str:
        return self.kind


Sends = Callable[[int], float]  # the number of a result -> how much of a gradient is sent back from it


def _all(at: int) -> float:
    return 1.0


def _plain(trace: Callable[[Sends], _Trace]) -> tuple[_Trace, Sends]:
    """The model's own trace, and from which results it sends a gradient back: from all, where that can be done.

    A model may return what it writes to later, or has sent a gradient through already. Then those results send one back
    that can do so together.
    """
    with suppress(RuntimeError):
        return trace(_all), _all
    found, chosen = trace(lambda at: 0.0), set[int]()
    for at in found.carry:
        with suppress(RuntimeError):
            found = trace(lambda other, tried=frozenset({*chosen, at}): float(other in tried))  # type: ignore[misc]
            chosen.add(at)
    return found, lambda at: float(at in chosen)


def _trace(run: nn.Module, model: nn.Module, leaves: list[Any], spec: Any, sends: Sends) -> _Trace:
    args, kwargs = unflatten(leaves, spec)
    kept = {p: p.grad for p in model.parameters()}
    try:
        for p in kept:
            p.grad = None
        out, out_spec = flatten(run(*args, **kwargs))
        random = torch.get_rng_state()
        _backward(out, sends)
        named = [*model.named_parameters(), *((f"input {i}", v) for i, v in enumerate(leaves))]
        gradients = {n: _dense(v.grad) for n, v in named if isinstance(v, Tensor) and v.requires_grad}
    finally:
        for p, grad in kept.items():
            p.grad = grad
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    detached = [v.detach().clone() if isinstance(v, Tensor) else v for v in out]
    carry = [at for at, v in enumerate(out) if isinstance(v, Tensor) and v.requires_grad]
    return _Trace(detached, out_spec, carry, buffers, random, gradients)


def _backward(leaves: list[Any], sends: Sends) -> None:
    """Send a fixed random gradient back from the results."""
    generator = torch.Generator().manual_seed(7)
    roots = [(v, sends(at)) for at, v in enumerate(leaves) if isinstance(v, Tensor) and v.requires_grad]
    seeds = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) * much for v, much in roots]
    if chosen := [(v, seed) for (v, much), seed in zip(roots, seeds, strict=True) if much]:
        torch.autograd.backward([v for v, _ in chosen], [seed for _, seed in chosen])


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Embeddings may have sparse gradients."""
    return gradient if gradient is None or gradient.layout == torch.strided else gradient.to_dense()


def _same(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return equal_tensors(x, y)
    return type(x) is type(y) and bool(x == y or x is y or x != x)


def _same_leaves(plain: _Trace, ours: _Trace) -> bool:
    return (
        plain.spec == ours.spec and len(plain.leaves) == len(ours.leaves) and all(map(_same, plain.leaves, ours.leaves))
    )


def _outputs(mode: str, plain: _Trace, ours: _Trace, first: str | None) -> Finding:
    if plain.spec != ours.spec:
        return Finding(mode, "outputs", False, f"another structure: {ours.spec} instead of {plain.spec}")
    if first is None:
        return Finding(mode, "outputs", True, f"{len(plain.leaves)} bitwise equal")
    apart = max((_distance(x, y) for x, y in zip(plain.leaves, ours.leaves, strict=True)), default=0.0)
    return Finding(mode, "outputs", False, f"apart by {apart:.3g}; {first}")


def _buffers(mode: str, plain: _Trace, ours: _Trace) -> Finding:
    names = dict.fromkeys((*plain.buffers, *ours.buffers))
    wrong = [name for name in names if not _same(plain.buffers.get(name), ours.buffers.get(name))]
    said = f"{len(plain.buffers)} bitwise equal" if not wrong else f"differ after the run: {', '.join(wrong[:5])}"
    return Finding(mode, "buffers", not wrong, said)


def _gradients(dm: DecoupledModule, mode: str, plain: _Trace, ours: _Trace) -> Finding:
    """Per parameter: equal up to the rounding of sums in another order, relative to the largest gradient nearby."""
    pairs = {name: (expected, ours.gradients.get(name)) for name, expected in plain.gradients.items()}
    apart = {name: (g, h) for name, (g, h) in pairs.items() if not (g is h is None or _same(g, h))}
    overall = max((_largest(g) for g in plain.gradients.values()), default=0.0) if apart else 0.0
    wrong = {}
    for name, (expected, found) in apart.items():
        distance = _distance(expected, found)
        scale = max(_largest(expected), 1e-3 * overall)
        if not distance <= _tolerance(expected if expected is not None else found) * scale:
            wrong[name] = distance
    exact = len(pairs) - len(apart)
    if not wrong:
        return Finding(mode, "oracle gradients", True, f"{exact} of {len(plain.gradients)} bitwise equal, none apart")
    worst = max(wrong, key=lambda name: wrong[name])
    place = dict(dm.original.named_parameters()).get(worst)
    owners = {id(q): part for part, held in dm.parameters_of_parts().items() for q in held}
    part = "an input" if place is None else owners.get(id(place), "no part")
    return Finding(
        mode,
        "oracle gradients",
        False,
        f"{len(wrong)} apart, most: {worst} by {wrong[worst]:.3g}; first seen in {part}",
    )


def _separation(dm: DecoupledModule, mode: str, zeros: _Trace, doubled: Callable[[], _Trace]) -> Finding:
    """Behind boundaries that hand down zeros nothing of what the results send back may arrive.

    What arrives there whatever they send was made below: an autograd function may add a gradient of its own.
    """
    held = dm.parameters_below()
    below = [name for name in zeros.gradients if name in held]
    leaks = [n for n in below if _largest(zeros.gradients.get(n))]
    if leaks:
        other = doubled().gradients
        leaks = [n for n in leaks if not _same(zeros.gradients[n], other.get(n))]
    said = f"{len(below)} parameters below the cuts hear from their boundaries alone"
    return Finding(
        mode, "separation", not leaks, said if not leaks else f"gradients leak past the cuts to {', '.join(leaks[:5])}"
    )


def _first_difference(dm: DecoupledModule, args: Any, kwargs: Any) -> str:
    """The first module call whose result differs between the model and the parts, and the part that it is in."""
    leaves, spec = flatten((args, kwargs))

    def calls(run: nn.Module, watched: dict[nn.Module, str]) -> list[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []

        def note(module: nn.Module, _: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                seen.append((watched[module], out.detach().clone()))

        handles = [m.register_forward_hook(note) for m in watched if not any(m.children())]
        try:
            with untouched(dm.original), torch.no_grad():
                call_args, call_kwargs = unflatten(fresh_copies(leaves), spec)
                run(*call_args, **call_kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    places = {(part, n.target): m for part, p in dm.parts.items() for n, m in _called(p)}
    plain = calls(dm.original, {m: path for path, m in dm.original.named_modules()})
    ours = calls(dm, {m: f"'{path}', in {part}" for (part, path), m in places.items()})
    for (path, x), (place, y) in zip(plain, ours, strict=False):
        if f"'{path}'" != place.partition(",")[0] or not _same(x, y):
            return f"first at {place}"
    return "every module agrees, a function between them does not"


def _called(part: fx.GraphModule) -> list[tuple[fx.Node, nn.Module]]:
    return [(n, part.get_submodule(str(n.target))) for n in part.graph.nodes if n.op == "call_module"]


def _distance(x: Any, y: Any) -> float:
    if x is None or y is None:
        return _largest(x if y is None else y)
    if not isinstance(x, Tensor) or x.shape != y.shape:
        return float("inf") if x is not y and x != y else 0.0
    return (
        float((x.double() - y.double()).abs().nan_to_num(0).max())
        if x.numel() and not x.is_complex()
        else float(not _same(x, y))
    )


def _largest(x: Tensor | None) -> float:
    return 0.0 if x is None or not x.numel() else float(x.detach().abs().double().nan_to_num(0).max())


def _tolerance(x: Tensor | None) -> float:
    if x is None:
        return 0.0
    return {torch.float64: 1e-10, torch.float32: 1e-4}.get(x.dtype, 2e-2)
