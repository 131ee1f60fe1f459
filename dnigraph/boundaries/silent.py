"""The control: a boundary that hands nothing down. A head is worth something only if it does better."""

from torch import Tensor

from .boundary import Boundary, Seen, Visit


class Silent(Boundary):
    """Hands down no gradient.

    The producer's parameters then have no gradient (not a zero one), so that an optimiser leaves them alone.
    """

    kind = "silent"
    from_consumers = True
    waits = False

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        return Visit((value,), (None,), lambda target: (None,))
