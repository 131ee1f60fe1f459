"""The control: a boundary that hands nothing down. A head is worth something only if it does better."""

from torch import Tensor

from .boundary import Boundary, Visit


class Silent(Boundary):
    """Hands down no gradient.

    The producer's parameters then have no gradient (not a zero one), so that an optimiser leaves them alone.
    """

    kind = "silent"
    heeds = True

    def visit(self, value: Tensor) -> Visit:
        return Visit((value,), (None,), lambda target: (None,))

    @property
    def waits(self) -> bool:
        """Never."""
        return False
