"""One step through the parts: who learns when.

    forward   part by part; a part whose gradients are all known at once learns on the spot and its activations go
    loss
    backward  the parts that wait, last first

Each consumer of a crossing reads its own detached copy, so that a part's backward pass ends at its inputs. What arrives
there are the consumers' contributions; when all of a crossing's consumers have sent theirs, the boundary settles.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..boundaries import Boundary, Visit, sum_in_order
from ..decoupled.specialization import Specialization
from ..passes.errors import DniGraphError
from ..passes.parts.split import Value
from ..passes.plan.plan import Crossing, Part
from .optimizers import Updates


@dataclass
class _Run:
    """One part in one step, until it has learned."""

    part: Part
    entered: dict[str, Tensor] = field(default_factory=dict)  # what it reads and sends gradients back to
    visits: dict[str, Visit] = field(default_factory=dict)  # what it hands on, by crossing
    results: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (its value, what the loss sees)
    last: bool = False  # it hands nothing on: the loss sees its own values, and sends gradients straight into it


class Step:
    """The forward and backward passes of one batch."""

    def __init__(self, variant: Specialization, boundaries: Mapping[str, Boundary], updates: Updates):
        self.variant, self.boundaries, self.updates = variant, boundaries, updates
        self.crossings = {c.node: c for c in variant.plan.crossings}
        self.values: dict[str, Any] = {}  # what later parts read, detached
        self.waiting: list[_Run] = []
        self.settling: dict[str, Visit] = {}  # visits whose producer has learned
        self.sent: dict[str, dict[str, Tensor | None]] = {node: {} for node in self.crossings}
        self.outputs: list[Any] = [None] * len(variant.split.outputs)
        self.early: dict[int, Tensor] = {}  # outputs whose part did not wait for the loss

    def forward(self, inputs: list[Any]) -> list[Any]:
        """Run all parts; those that can, learn. Returns the model's flat results, for the loss."""
        self.values = dict(zip(self.variant.plan.inputs, inputs, strict=True))
        for part in self.variant.plan.parts:
            run = self._run(part)
            if run.last or run.results or any(visit.now is None for visit in run.visits.values()):
                self.waiting.append(run)
            else:
                self._learn(run, {name: visit.now for name, visit in run.visits.items()})
            del run  # or it would live through the next part's forward pass
        for i, output in enumerate(self.variant.split.outputs):
            if not isinstance(output, Value):
                self.outputs[i] = output
            elif self.outputs[i] is None:
                self.outputs[i] = self.values[output.name]  # an input
        return self.outputs

    def backward(self, loss: Tensor) -> None:
        """Let the loss and then the parts that waited learn.

        Raises:
            DniGraphError: the loss looks at an output that it did not look at before, whose part has learned already.
        """
        with _no_autocast():
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self._note_silence()
        for run in reversed(self.waiting):
            known = {name: v.gradients(self._target(name)) for name, v in run.visits.items()}
            self._learn(run, known, settled=True)

    # ---- one part

    def _run(self, part: Part) -> _Run:
        run = _Run(part, last=not any(self._crosses(name) for name in part.outputs))
        made = self.variant.parts[part.name](*[self._enter(run, name) for name in part.inputs])
        named = zip(part.outputs, made if len(part.outputs) != 1 else (made,), strict=True)
        for name, value in named:
            self._hand_on(run, name, value)
        return run

    def _crosses(self, name: str) -> bool:
        return name in self.crossings and self.crossings[name].gradient

    def _enter(self, run: _Run, name: str) -> Any:
        value = self.values[name]
        if name not in self.crossings or not isinstance(value, Tensor) or not value.requires_grad:
            return value
        run.entered[name] = value.detach().requires_grad_()
        return run.entered[name]

    def _hand_on(self, run: _Run, name: str, value: Any) -> None:
        learns = isinstance(value, Tensor) and value.requires_grad
        self.values[name] = value.detach().requires_grad_() if learns else value
        if learns and name in self.crossings:
            run.visits[name] = self._visit(self.crossings[name], value)
        for i, output in enumerate(self.variant.split.outputs):
            if isinstance(output, Value) and output.name == name:
                self._result(run, i, value, learns)

    def _result(self, run: _Run, i: int, value: Any, learns: bool) -> None:
        self.outputs[i] = seen = value.detach().requires_grad_() if learns and not run.last else value
        if run.last:
            return
        if learns and i in self.variant.silent:
            self.early[i] = seen
        elif learns:
            run.results.append((value, seen))

    def _visit(self, crossing: Crossing, value: Tensor) -> Visit:
        boundary = self.boundaries.get(crossing.name)
        if boundary is None or not boundary.learns(value):  # nothing stands here: true gradients
            return Visit((value,), None, lambda target: (target,))
        return boundary.meet(value)

    def _learn(self, run: _Run, known: Mapping[str, Any], settled: bool = False) -> None:
        roots = [pair for name, visit in run.visits.items() for pair in pairs(visit.roots, known[name])]
        roots += [(value, seen.grad) for value, seen in run.results if seen.grad is not None]
        backward(roots)
        self.updates.part_done(run.part.name)
        for name, visit in run.visits.items():
            if settled:
                self.updates.boundary_done(self.crossings[name].name)
            else:
                # The producer has learned: nothing may keep its graph alive, not even where it was handed nothing.
                kept = (visit.roots[0].detach(), *visit.roots[1:])
                self.settling[name] = Visit(kept, visit.now, visit.settle)
        for name, entered in run.entered.items():
            self._send(name, run.part.name, entered.grad)

    # ---- what comes back

    def _send(self, name: str, part: str, gradient: Tensor | None) -> None:
        self.sent[name][part] = gradient
        readers = self.crossings[name].consumers
        if name in self.settling and len(self.sent[name]) == len(readers):
            visit = self.settling.pop(name)
            backward(pairs(visit.roots, visit.settle(self._target(name))))
            self.updates.boundary_done(self.crossings[name].name)

    def _target(self, name: str) -> Tensor | None:
        sent = self.sent[name]
        return sum_in_order([sent.get(part) for part in self.crossings[name].consumers])

    def _note_silence(self) -> None:
        """Remember which outputs the loss does not look at: their parts need not wait for it next time."""
        looked = [i for i, seen in self.early.items() if seen.grad is not None]
        self.variant.silent.difference_update(looked)
        if looked:
            raise DniGraphError(
                f"the loss looks at output {looked[0]} now, and did not before: the part that makes it has learned "
                "already in this step. The next step will wait for it"
            )
        for i, seen in enumerate(self.outputs):
            if isinstance(seen, Tensor) and seen.requires_grad and seen.is_leaf and seen.grad is None:
                self.variant.silent.add(i)


def pairs(roots: tuple[Tensor, ...], gradients: Any) -> list[tuple[Tensor, Tensor]]:
    """The roots that have a gradient, with it."""
    return [(r, g) for r, g in zip(roots, gradients, strict=True) if g is not None and r.requires_grad]


def backward(roots: list[tuple[Tensor, Tensor]]) -> None:
    """One backward pass from all roots, outside autocast."""
    if roots:
        with _no_autocast():
            torch.autograd.backward([r for r, _ in roots], [g for _, g in roots])


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    """A backward pass runs outside autocast, as it would after the user's own `with` block."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
