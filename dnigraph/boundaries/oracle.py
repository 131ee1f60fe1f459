"""The boundary that hands down the true gradient. With it, a decoupled model must equal backprop."""

from torch import Tensor

from .boundary import Boundary, Visit


class Oracle(Boundary):
    """Hands back the consumers' gradient, bitwise: backprop through the same code path as every other boundary."""

    kind = "oracle"
    heeds = True
    exact = True

    def visit(self, value: Tensor) -> Visit:
        return Visit((value,), None, lambda target: (target,))
