"""One batch through the parts of a cut model, in lock step: every answer comes in the step of its value.

    forward   part by part; a part whose gradients are all known at once learns immediately, and frees its activations
    loss
    backward  the parts that wait for the loss, last first

Each consumer of a crossing reads a detached copy of its own, so that a part's backward pass ends at its inputs, with
the consumer's share of the crossing's target. One thread calls all parts in order, so values need no channels, and a
part that answers does it at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..boundaries import Boundary, Visit
from ..boundaries.exchange import overheard
from ..decoupled.specialization import Specialization
from ..heads.seen import Outputs
from ..passes.errors import DniGraphError
from ..passes.parts.split import Value
from ..passes.plan.plan import Crossing, Part
from .firing import Firing, Sent
from .updates.gradients import no_autocast
from .updates.optimizers import Updates


class LockStep:
    """The forward and backward passes of one batch.

    Args:
        noted: takes the gradients at the outputs, where a boundary looks at them.
    """

    def __init__(
        self, specialization: Specialization, boundaries: Mapping[str, Boundary], updates: Updates,
        noted: Outputs | None = None,
    ):  # fmt: skip
        self.specialization, self.boundaries, self.updates = specialization, boundaries, updates
        self.noted = noted  # where the error at the outputs comes to; None: no boundary looks at it
        self.answered_early: list[tuple[Crossing, Sent]] = []  # whose boundaries need the error, before it is there
        self.crossings = {c.node: c for c in specialization.plan.crossings}
        self.values: dict[str, Any] = {}  # detached, for later parts
        self.sent: dict[str, Sent] = {}  # by crossing, those that not all consumers have answered
        self.waiting: list[_Run] = []
        self.outputs: list[Any] = [None] * len(specialization.split.outputs)
        self.early: dict[int, Tensor] = {}  # outputs whose part did not wait for the loss

    def forward(self, inputs: list[Any]) -> list[Any]:
        """Run all parts. Those that need not wait learn. Returns the model's flat results, for the loss."""
        self.values = dict(zip(self.specialization.plan.inputs, inputs, strict=True))
        for part in self.specialization.plan.parts:
            run = self._run(part)
            if run.last or run.results or not run.firing.knows:
                self.waiting.append(run)
            else:
                self._learn(run)
            del run  # else its graph would live through the next part's forward pass
        for i, output in enumerate(self.specialization.split.outputs):
            if not isinstance(output, Value):
                self.outputs[i] = output
            elif self.outputs[i] is None:
                self.outputs[i] = self.values[output.name]  # an input
        return self.outputs if self.noted is None else overheard(self.noted, self.outputs)

    def backward(self, loss: Tensor) -> None:
        """Run the loss's backward pass; then the parts that waited learn, last first.

        Raises:
            DniGraphError: the loss reads an output that it did not read before, and whose part has learned already.
        """
        with no_autocast():
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        self._note_silence()
        self.noted = None
        for crossing, sent in self.answered_early:
            self._settle(crossing, sent)
        for run in reversed(self.waiting):
            run.firing.ends += [(value, seen.grad) for value, seen in run.results if seen.grad is not None]
            self._learn(run)

    # ---- one part

    def _run(self, part: Part) -> "_Run":
        run = _Run(part, Firing(0), [], last=not any(self._crosses(name) for name in part.outputs))
        outputs = self.specialization.parts[part.name](*[self._enter(run, name) for name in part.inputs])
        for name, value in zip(part.outputs, outputs if len(part.outputs) != 1 else (outputs,), strict=True):
            self._hand_on(run, name, value)
        return run

    def _crosses(self, name: str) -> bool:
        return name in self.crossings and self.crossings[name].gradient

    def _enter(self, run: "_Run", name: str) -> Any:
        value = self.values[name]
        if name not in self.crossings or not isinstance(value, Tensor) or not value.requires_grad:
            return value
        leaf = value.detach().requires_grad_()
        run.firing.readings.append(_Entered(self, self.crossings[name], run.part.name, leaf))
        return leaf

    def _hand_on(self, run: "_Run", name: str, value: Any) -> None:
        if isinstance(value, Tensor) and self.updates.moves(value):  # heads and later parts read it after the update
            value = value.clone()
        learns = isinstance(value, Tensor) and value.requires_grad
        self.values[name] = value.detach().requires_grad_() if learns else value
        if learns and name in self.crossings:
            visit = self._visit(self.crossings[name], value)
            self.sent[name] = sent = Sent(visit)
            run.firing.send(name, sent, visit)
        for i, output in enumerate(self.specialization.split.outputs):
            if isinstance(output, Value) and output.name == name:
                self._result(run, i, value, learns)

    def _result(self, run: "_Run", i: int, value: Any, learns: bool) -> None:
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

    def _learn(self, run: "_Run") -> None:
        run.firing.learn()
        self.updates.part_done(run.part.name)
        for node in run.firing.sent.keys() - self.sent.keys():  # those that waited, and have learned with it
            self.updates.boundary_done(self.crossings[str(node)].name)
        run.firing.done()

    def answered(self, crossing: Crossing, part: str, gradient: Tensor | None) -> None:
        """A consumer of a crossing has learned. Once all have, the boundary settles."""
        sent = self.sent[crossing.node]
        sent.answers[crossing.consumers.index(part)] = gradient
        if len(sent.answers) < len(crossing.consumers) or sent.visit is None:
            return
        del self.sent[crossing.node]
        boundary = None if self.noted is None else self.boundaries.get(crossing.name)
        if boundary is not None and "error" in boundary.needs:
            self.answered_early.append((crossing, sent))
        else:
            self._settle(crossing, sent)

    def _settle(self, crossing: Crossing, sent: Sent) -> None:
        waits = sent.firing is not None
        if sent.visit is not None:
            sent.settle(sent.visit, sent.target())
        if not waits:
            self.updates.boundary_done(crossing.name)

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


@dataclass
class _Run:
    """One part in one step, until it has learned."""

    part: Part
    firing: "Firing[_Entered]"
    results: list[tuple[Tensor, Tensor]]  # (its own tensor, the loss's copy)
    last: bool  # it makes no crossing: the loss gets its own tensors, and backward goes straight into it


@dataclass
class _Entered:
    """A crossing's value as one of its consumers reads it."""

    step: LockStep
    crossing: Crossing
    part: str
    leaf: Any

    def learned(self, tick: int, gradient: Tensor | None) -> None:
        self.step.answered(self.crossing, self.part, gradient)
