"""Steps in which each part hears of its crossings some steps late, so that none would have to wait for another."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..decoupled.on_graphs import CapturedModule
from ..decoupled.specialization import Specialization
from ..engine.updates.optimizers import Updates
from ..passes.errors import CheckpointError


class LateSteps:
    """The steps of `Local` on the network of the model, whose answers come late.

    Args:
        loss: of (output, target), which may be None.
        late: how many steps later than it could each answer comes.
    """

    def __init__(self, dm: CapturedModule, loss: Callable[[Any, Any], Tensor], updates: Updates, late: int):
        self.dm, self.updates = dm, updates
        self.net = dm.network(loss=loss, late=late)

    def step(
        self, specialization: Specialization, inputs: Sequence[Any], target: Any, label: Any
    ) -> tuple[Tensor, Any]:
        """One step on the way of a specialization. Returns the loss and the model's output, both detached."""
        result = self.net.tick_on(specialization, inputs, target, label, self.updates.groups)
        (loss,) = result.losses.values()
        return loss, self.net.output_of(result)

    def settle(self) -> None:
        """Let every part learn from what is under way."""
        self.net.settle()

    def clear(self) -> None:
        """Forget what is under way."""
        self.net.clear()

    def refuse_open(self) -> None:
        """Refuse to save steps that have not been learned from.

        Raises:
            CheckpointError: there are such.
        """
        if self.net.open:
            raise CheckpointError(
                f"{self.net.open} answers are under way, whose graphs no file can hold: let the parts learn from them "
                "first, run.settle()"
            )
