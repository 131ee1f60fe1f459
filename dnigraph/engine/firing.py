"""One run of a part: what it read, what it sent, and when it learns."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..boundaries import Seen, Visit, sum_in_order
from ..heads.conditions import NOTHING
from .updates.gradients import backward, pairs


class Answerable(Protocol):
    """A value that a firing has read, and whose gradient goes back."""

    leaf: Any  # what the module saw; a tensor that gets a gradient is the start of the firing's graph

    def learned(self, tick: int, gradient: Tensor | None) -> None:
        """Hear the gradient that the firing of that tick has for the value; None: it has none."""


R = TypeVar("R", bound=Answerable)


@dataclass
class Firing(Generic[R]):
    """What one run of a part holds until it has learned.

    It learns in one backward pass, from its own loss and from a gradient for each output: the estimates, which are
    there at once, or for a boundary that waits (an oracle, a warm-up) those that the answers give.
    """

    tick: int
    ends: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # its loss, or outputs that a loss reads; gradients
    readings: list[R] = field(default_factory=list)
    sent: dict[Hashable, "Sent"] = field(default_factory=dict)  # by the name or number of the output
    gradients: dict[Hashable, Any] = field(default_factory=dict)  # of the roots of their visits

    def send(self, output: Hashable, sent: "Sent", visit: Visit) -> None:
        """An output has been visited, and goes to its readers."""
        self.sent[output], sent.firing, sent.output = sent, self, output
        if visit.now is not None:
            self.gradients[output] = visit.now

    @property
    def knows(self) -> bool:
        """Whether all gradients are there."""
        return len(self.gradients) == len(self.sent)

    def learn(self) -> None:
        """Run the backward pass."""
        backward([*self._roots(), *self.ends])

    def _roots(self) -> Iterator[tuple[Tensor, Tensor]]:
        for output, sent in self.sent.items():
            if sent.visit is not None:
                yield from pairs(sent.visit.roots, self.gradients[output])

    def done(self) -> None:
        """It has learned, or never will: release the graphs, and hand on the gradients of what was read."""
        for sent in self.sent.values():
            sent.release()
        readings, self.readings, self.sent, self.ends = self.readings, [], {}, []
        for reading in readings:
            reading.learned(self.tick, reading.leaf.grad if isinstance(reading.leaf, Tensor) else None)


@dataclass
class Sent:
    """A value that its readers have, and that not all of them have answered."""

    visit: Visit | None  # None: the boundary visits the value again when the answers are there
    value: Any = None  # detached, where there may be such a visit
    seen: Seen = NOTHING  # by the boundary in its visit
    firing: Firing[Any] | None = None  # None: it has learned, or never will
    output: Hashable = None  # as the firing knows it
    answers: dict[int, Tensor | None] = field(default_factory=dict)  # by the reader's number: a gradient or none

    def target(self) -> Tensor | None:
        """The gradient of the value: the sum over its readers."""
        return sum_in_order([self.answers[number] for number in sorted(self.answers)])

    def settle(self, visit: Visit, target: Tensor | None) -> None:
        """All readers have answered: the firing that waits gets its gradients, or else the boundary learns."""
        if self.firing is not None and visit.now is None:
            self.firing.gradients[self.output] = visit.gradients(target)
        else:
            backward(pairs(visit.roots[1:], visit.settle(target)[1:]))

    def release(self) -> None:
        """Its firing has learned, or never will: keep none of its graph."""
        self.firing = None
        if self.visit is not None:
            roots = self.visit.roots
            self.visit = Visit((roots[0].detach(), *roots[1:]), self.visit.now, self.visit.settle)


@contextmanager
def stashed(modules: Sequence[nn.Module], copies: bool = True) -> Iterator[None]:
    """Graphs made inside keep the present weights, for backward passes that run after the weights have moved.

    Args:
        copies: False: they do not, and such a backward pass runs with the weights of its time.

    Source: Narayanan et al. 2019, PipeDream (weight stashing).
    """
    addresses = (
        set() if not copies else {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    )

    def keep(value: Tensor) -> Tensor:
        is_weight = value.layout == torch.strided and value.untyped_storage().data_ptr() in addresses
        detached = value.detach()  # the value itself would hold its graph: a cycle, if no gradient ever comes
        return detached.clone() if is_weight else detached

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield
