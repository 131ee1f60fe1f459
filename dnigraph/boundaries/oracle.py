"""The boundary that hands down the true gradient. With it, a decoupled model must equal backprop."""

from typing import Any

from torch import Tensor

from ..heads.conditions import Context
from .boundary import Boundary, CrossingSpec, Seen, Visit


class Oracle(Boundary):
    """Hands back the consumers' gradient, bitwise: backprop through the same code path as every other boundary.

    Args:
        stash: where that comes late, the part below learns with the weights that it had when it sent the value; False:
            with those that it has by then.
    """

    kind = "oracle"
    from_consumers = True
    exact = True

    def __init__(self, spec: CrossingSpec, context: Context, kind: str = "oracle", stash: bool = True) -> None:
        super().__init__(spec, context)
        self.kind, self.stashes = kind, stash

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        return Visit((value,), None, lambda target: (target,))

    def settings(self) -> dict[str, Any]:
        """Whether weights are stashed."""
        return {**super().settings(), "stash": self.stashes}
