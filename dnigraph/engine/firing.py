"""One firing of one agent, from what it read until it has learned."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries import Visit
from .arrivals import Reading
from .inbox import Inbox
from .outbox import Outbox
from .updates.gradients import backward, pairs


@dataclass
class Firing:
    """What one firing holds until it has learned.

    It learns in one backward pass, from its own loss and from a gradient for each output: the estimates, which are
    there at once, or for a boundary that waits (an oracle, a warm-up) the answers.
    """

    tick: int
    loss: Tensor | None = None
    readings: list[tuple[Inbox, Reading, Any]] = field(default_factory=list)  # and the leaf that the module saw
    visits: dict[int, Visit] = field(default_factory=dict)  # by the outbox's number
    gradients: dict[int, Any] = field(default_factory=dict)
    boxes: list[Outbox] = field(default_factory=list)

    def visited(self, number: int, visit: Visit) -> None:
        """An output was sent."""
        self.visits[number] = visit
        if visit.now is not None:
            self.gradients[number] = visit.now

    def answered(self, box: Outbox, gradients: Any) -> None:
        """The gradients that it waited for have come."""
        self.gradients[self.boxes.index(box)] = gradients

    @property
    def knows(self) -> bool:
        """Whether all gradients are there."""
        return len(self.gradients) == len(self.visits)

    def learn(self) -> None:
        """Run the backward pass, and give each message that was read its share of the gradient."""
        roots = [pair for i, visit in self.visits.items() for pair in pairs(visit.roots, self.gradients[i])]
        if self.loss is not None and self.loss.requires_grad:
            roots.append((self.loss, torch.ones_like(self.loss)))
        try:
            backward(roots)
        finally:
            self.done()

    def done(self) -> None:
        """Answer the messages that were read, and release the graphs."""
        for inbox, reading, leaf in self.readings:
            gradient = leaf.grad if isinstance(leaf, Tensor) else None
            inbox.learned(self.tick, reading, gradient)
        for number in self.visits:
            self.boxes[number].learned(self.tick)
        self.visits, self.loss, self.readings = {}, None, []


@contextmanager
def stashed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Graphs made inside keep the present weights, for backward passes that run after the weights have moved.

    Source: Narayanan et al. 2019, PipeDream (weight stashing).
    """
    addresses = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}

    def keep(value: Tensor) -> Tensor:
        is_weight = value.layout == torch.strided and value.untyped_storage().data_ptr() in addresses
        detached = value.detach()  # the value itself would hold its graph: a cycle, if no gradient ever comes
        return detached.clone() if is_weight else detached

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield
