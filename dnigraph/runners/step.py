"""One training step through the parts: when each part and each head learns.

    forward   part by part; a part whose gradients are all known at once learns immediately, and frees its activations
    loss
    backward  the parts that wait for the loss, last first

Each consumer of a crossing reads a detached copy of its own, so that a part's backward pass ends at its inputs, with
the consumer's share of the crossing's target. Once all consumers have sent theirs, the boundary settles.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..boundaries import Boundary, Visit, sum_in_order
from ..decoupled.specialization import Specialization
from ..engine.updates.gradients import backward, no_autocast, pairs
from ..engine.updates.optimizers import Updates
from ..passes.errors import DniGraphError
from ..passes.parts.split import Value
from ..passes.plan.plan import Crossing, Part


@dataclass
class _Run:
    """One part in one step, until it has learned."""

    part: Part
    entered: dict[str, Tensor] = field(default_factory=dict)  # its inputs that get gradients
    visits: dict[str, Visit] = field(default_factory=dict)  # of the crossings that it makes
    results: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (its own tensor, the loss's copy)
    last: bool = False  # it makes no crossing: the loss gets its own tensors, and backward goes straight into it


class Step:
    """The forward and backward passes of one batch."""

    def __init__(self, specialization: Specialization, boundaries: Mapping[str, Boundary], updates: Updates):
        self.specialization, self.boundaries, self.updates = specialization, boundaries, updates
        self.crossings = {c.node: c for c in specialization.plan.crossings}
        self.values: dict[str, Any] = {}  # detached, for later parts
        self.waiting: list[_Run] = []
        self.settling: dict[str, Visit] = {}  # visits whose producer has learned already
        self.sent: dict[str, dict[str, Tensor | None]] = {node: {} for node in self.crossings}
        self.outputs: list[Any] = [None] * len(specialization.split.outputs)
        self.early: dict[int, Tensor] = {}  # outputs whose part did not wait for the loss

    def forward(self, inputs: list[Any]) -> list[Any]:
        """Run all parts. Those that need not wait learn. Returns the model's flat results, for the loss."""
        self.values = dict(zip(self.specialization.plan.inputs, inputs, strict=True))
        for part in self.specialization.plan.parts:
            run = self._run(part)
            if run.last or run.results or any(visit.now is None for visit in run.visits.values()):
                self.waiting.append(run)
            else:
                self._learn(run, {name: visit.now for name, visit in run.visits.items()})
            del run  # else its graph would live through the next part's forward pass
        for i, output in enumerate(self.specialization.split.outputs):
            if not isinstance(output, Value):
                self.outputs[i] = output
            elif self.outputs[i] is None:
                self.outputs[i] = self.values[output.name]  # an input
        return self.outputs

    def backward(self, loss: Tensor) -> None:
        """Run the loss's backward pass; then the parts that waited learn, last first.

        Raises:
            DniGraphError: the loss reads an output that it did not read before, and whose part has learned already.
        """
        with no_autocast():
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self._note_silence()
        for run in reversed(self.waiting):
            known = {name: v.gradients(self._target(name)) for name, v in run.visits.items()}
            self._learn(run, known, settled=True)

    # ---- one part

    def _run(self, part: Part) -> _Run:
        run = _Run(part, last=not any(self._crosses(name) for name in part.outputs))
        outputs = self.specialization.parts[part.name](*[self._enter(run, name) for name in part.inputs])
        for name, value in zip(part.outputs, outputs if len(part.outputs) != 1 else (outputs,), strict=True):
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
        if isinstance(value, Tensor) and self.updates.moves(value):  # heads and later parts read it after the update
            value = value.clone()
        learns = isinstance(value, Tensor) and value.requires_grad
        self.values[name] = value.detach().requires_grad_() if learns else value
        if learns and name in self.crossings:
            run.visits[name] = self._visit(self.crossings[name], value)
        for i, output in enumerate(self.specialization.split.outputs):
            if isinstance(output, Value) and output.name == name:
                self._result(run, i, value, learns)

    def _result(self, run: _Run, i: int, value: Any, learns: bool) -> None:
        self.outputs[i] = seen = value.detach().requires_grad_() if learns and not run.last else value
        if run.last:
            return
        if learns and i in self.specialization.silent:
            self.early[i] = seen
        elif learns:
            run.results.append((value, seen))

    def _visit(self, crossing: Crossing, value: Tensor) -> Visit:
        boundary = self.boundaries.get(crossing.name)
        if boundary is None or not boundary.learns(value):  # no boundary: true gradients
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
                # The producer has learned, so the waiting visit must not keep its graph alive.
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
        """Note which outputs the loss does not read: their parts need not wait for it in the next step."""
        looked = [i for i, seen in self.early.items() if seen.grad is not None]
        self.specialization.silent.difference_update(looked)
        if looked:
            raise DniGraphError(
                f"the loss looks at output {looked[0]} now, and did not before: the part that makes it has learned "
                "already in this step. The next step will wait for it"
            )
        for i, seen in enumerate(self.outputs):
            if isinstance(seen, Tensor) and seen.requires_grad and seen.is_leaf and seen.grad is None:
                self.specialization.silent.add(i)
