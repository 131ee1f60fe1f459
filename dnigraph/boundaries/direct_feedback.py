"""Direct feedback alignment: the error at the outputs, through a fixed random matrix, is each crossing's gradient."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads.conditions import Context
from .boundary import Boundary, BoundaryError, CrossingSpec, Seen, Visit

LARGEST = 2**28  # numbers in a feedback matrix: a gigabyte of float32


class DirectFeedback(Boundary):
    """Hands down the error at the model's outputs, sent back through a fixed random matrix B.

        value ─► ... ─► output ─► loss
          ▲                │
          └────── B ◄──────┘ error

    B is drawn from a seed of the boundary's own, for the sizes that come: a checkpoint holds the seed. Where the output
    has as many positions as the value (tokens), or both are maps, it is one matrix for all positions; an error on
    another grid is averaged to the value's.

    Shapes: value [batch, *features], error [batch, *outputs].

    Source: Nøkland 2016, arXiv 1609.01596.
    """

    kind = "dfa"
    needs = frozenset({"error"})

    def __init__(self, spec: CrossingSpec, context: Context, scale: float) -> None:
        super().__init__(spec, context)
        self.scale = scale
        self.seed = int(torch.randint(2**31, ()))
        self._matrix: Tensor | None = None  # as it was needed last

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        """The producer waits for the loss. What the consumers send is not looked at."""
        like = value.detach()

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            error = seen.error()
            return (None if error is None else self._fed_back(error, like),)

        return Visit((value,), None, settle)

    def settings(self) -> dict[str, Any]:
        """The scale of the feedback."""
        return {"scale": self.scale}

    def get_extra_state(self) -> int:
        """The seed of the feedback matrix."""
        return self.seed

    def set_extra_state(self, state: int) -> None:
        """Have the feedback matrix of a checkpoint."""
        self.seed, self._matrix = state, None

    def _fed_back(self, error: Tensor, value: Tensor) -> Tensor:
        """The error as the value's gradient. Shapes: error [batch, *outputs], value [batch, *features] -> value's."""
        if len(error) != len(value):
            raise BoundaryError(
                f"boundary '{self.spec.name}': the value has {len(value)} samples, the error at the model's outputs "
                f"{list(error.shape)}: direct feedback takes outputs with the batch first"
            )
        error = error.to(value.dtype)
        if self.spec.kind == "maps" and error.ndim == value.ndim:
            return self._over_maps(error, value)
        if value.ndim > 2 and error.shape[:-1] == value.shape[:-1]:
            return error @ self._feedback(error.shape[-1], value.shape[-1], value)
        error = error.flatten(1)
        return (error @ self._feedback(error.shape[1], value[0].numel(), value)).view_as(value)

    def _over_maps(self, error: Tensor, value: Tensor) -> Tensor:
        pool: Any = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}[value.ndim]
        error = pool(error, value.shape[2:])
        back = error.movedim(1, -1) @ self._feedback(error.shape[1], value.shape[1], value)
        return back.movedim(-1, 1)

    def _feedback(self, outputs: int, features: int, like: Tensor) -> Tensor:
        """B, on the value's device. Its entries have a variance of scale squared over the number of outputs."""
        if outputs * features > LARGEST:
            raise BoundaryError(
                f"boundary '{self.spec.name}': its feedback matrix would be {outputs} x {features}: cut where "
                "the value is smaller, or give this crossing another boundary"
            )
        if self._matrix is None or self._matrix.shape != (outputs, features):
            drawn = torch.randn(outputs, features, generator=torch.Generator().manual_seed(self.seed))
            self._matrix = drawn * (self.scale / outputs**0.5)
        self._matrix = self._matrix.to(like)
        return self._matrix
