"""The running size of a crossing's gradient, so that a head works in units of it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class RunningScale(nn.Module):
    """The root mean square of the targets seen so far, with the past fading by `decay` a step.

    It is 0 until the first finite target that is not all zero, which then sets it: below another silent head the first
    targets are exactly zero, and dividing by their size gave nan elsewhere. Targets that are zero or not finite never
    touch it. It stays float32 when the model is cast to less.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(()))
        self.mean_square: Tensor

    def forward(self) -> Tensor:
        """The scale as it is now; 1 as long as nothing is known, so that a head that is not silent is heard at once.

        Shapes: [].
        """
        return self.mean_square.where(self.mean_square.ne(0), 1.0).sqrt()

    def update(self, mean_square: Tensor) -> Tensor:
        """Take in the mean square of a target, and return one over the scale that results (infinite: not known yet).

        Shapes: [] -> [].
        """
        known = self.mean_square
        usable = (mean_square / mean_square).eq(1)  # 0 / 0, inf / inf and nan / nan are nan
        towards = mean_square.to(known.dtype).where(usable, known)
        weight = known.eq(0).to(known.dtype).clamp_min_(1 - self.decay)  # the first one sets it
        known.lerp_(towards, weight)
        return known.rsqrt()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningScale":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.mean_square = self.mean_square.float()
        return self
