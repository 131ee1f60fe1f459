"""The control: a boundary that hands nothing down. A head is worth something only if it does better."""

from typing import Any

from torch import Tensor

from ..heads.conditions import Context
from .boundary import Boundary, BoundaryFactory, CrossingSpec, Visit


class Silent(Boundary):
    """Hands down no gradient, except the true one in a warm-up or every so many steps.

    The producer's parameters then have no gradient (not a zero one), so that an optimiser leaves them alone.
    """

    kind = "silent"
    heeds = True

    def __init__(self, spec: CrossingSpec, context: Context, warm_up: int = 0, refresh: int = 0):
        super().__init__(spec, context)
        self.warm_up, self.refresh = warm_up, refresh
        self._visits = 0

    def visit(self, value: Tensor) -> Visit:
        self._visits += 1
        if self._visits <= self.warm_up or (self.refresh and self._visits % self.refresh == 0):
            return Visit((value,), None, lambda target: (target,))
        return Visit((value,), (None,), lambda target: (None,))

    def again(self, value: Tensor) -> Visit:
        """Nothing, and no step."""
        return Visit((value,), (None,), lambda target: (None,))

    @property
    def waits(self) -> bool:
        """Whether the producer gets the true gradient in some visits."""
        return bool(self.warm_up or self.refresh)

    def settings(self) -> dict[str, Any]:
        """The options of `silent`."""
        return {"head": None, "warm_up": self.warm_up, "refresh": self.refresh}

    def get_extra_state(self) -> int:
        """The number of steps so far, for a checkpoint."""
        return self._visits

    def set_extra_state(self, state: int) -> None:
        """Go on from a checkpoint."""
        self._visits = state


def silent(*, warm_up: int = 0, refresh: int = 0) -> BoundaryFactory:
    """Nothing is handed down: the control beside every other boundary.

    Args:
        warm_up: in the first so many steps the producer gets the true gradient ("train, then freeze").
        refresh: every so many steps it gets the true gradient, and nothing in between; 0: never.
    """
    return lambda spec, context, head: Silent(spec, context, warm_up, refresh)
