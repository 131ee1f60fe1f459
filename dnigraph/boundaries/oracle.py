"""The boundary that changes nothing: the proof that the machinery is right."""

from torch import Tensor

from .boundary import Boundary, Visit


class Oracle(Boundary):
    """Hands back the true target, bitwise: backprop through the same machinery."""

    kind = "oracle"
    heeds = True

    def visit(self, value: Tensor) -> Visit:
        return Visit((value,), None, lambda target: (target,))
