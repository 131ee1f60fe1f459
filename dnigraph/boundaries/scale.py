"""The running size of a crossing's gradient, so that a head works in units of it."""

import math
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

    def forward(self) -> Tensor | float:
        """The scale as it is now; 1 as long as nothing is known: a head that is not silent is heard at once.

        A number where that costs nothing; on an accelerator a tensor, since asking for the number would wait for it.
        """
        if self.mean_square.device.type == "cpu":
            return math.sqrt(float(self.mean_square)) or 1.0
        return self.mean_square.where(self.mean_square.ne(0), 1.0).sqrt()

    def update(self, mean_square: Tensor) -> Tensor | float:
        """Take in the mean square of a target, and return one over the scale that results (infinite: not known yet).

        Shapes: [] -> [], or a number as in `forward`.
        """
        known = self.mean_square
        if known.device.type == "cpu":
            return self._update_number(float(mean_square), float(known))
        usable = (mean_square / mean_square).eq(1)  # 0 / 0, inf / inf and nan / nan are nan
        towards = mean_square.to(known.dtype).where(usable, known)
        weight = known.eq(0).to(known.dtype).clamp_min_(1 - self.decay)  # the first one sets it
        known.lerp_(towards, weight)
        return known.rsqrt()

    def _update_number(self, seen: float, known: float) -> float:
        """The same in Python: a tenth of the time of so many small operations."""
        if 0 < seen < math.inf:
            known = seen if known == 0 else known + (1 - self.decay) * (seen - known)
            self.mean_square.fill_(known)
            known = float(self.mean_square)  # in its precision, as a checkpoint would bring it back
        return 1 / math.sqrt(known) if known > 0 else math.inf

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningScale":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.mean_square = self.mean_square.float()
        return self
