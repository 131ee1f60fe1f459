"""The running size of a crossing's gradient, so that a head works in units of it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class RunningScale(nn.Module):
    """The root mean square of the targets so far, as an exponential moving average with `decay`.

    It is 0 until the first finite target that is not all zero sets it: below a head that still predicts zero the first
    targets are exactly zero, and dividing by their size would give nan. Targets that are zero or not finite are
    skipped. It stays float32 when the model is cast to a smaller type.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(()))
        self.mean_square: Tensor

    def forward(self) -> Tensor | float:
        """The present scale; 1 before the first target, so that a head which does not start at zero counts at once.

        A number on the CPU; on an accelerator a tensor, since reading the number would wait for the device.
        """
        if self.mean_square.device.type == "cpu":
            return math.sqrt(float(self.mean_square)) or 1.0
        return self.mean_square.where(self.mean_square.ne(0), 1.0).sqrt()

    def update(self, mean_square: Tensor) -> Tensor | float:
        """Average in the mean square of a target. Returns one over the new scale; infinite before the first target.

        Shapes: [] -> [], or a number as in `forward`.
        """
        known = self.mean_square
        if known.device.type == "cpu":
            return self._update_number(float(mean_square), float(known))
        usable = (mean_square / mean_square).eq(1)  # 0 / 0, inf / inf and nan / nan are nan
        towards = mean_square.to(known.dtype).where(usable, known)
        weight = known.eq(0).to(known.dtype).clamp_min_(1 - self.decay)  # 1 for the first target, which sets it
        known.lerp_(towards, weight)
        return known.rsqrt()

    def _update_number(self, seen: float, known: float) -> float:
        """The same in Python, in a tenth of the time that so many small tensor operations take."""
        if 0 < seen < math.inf:
            known = seen if known == 0 else known + (1 - self.decay) * (seen - known)
            self.mean_square.fill_(known)
            known = float(self.mean_square)  # rounded to its precision, as after loading a checkpoint
        return 1 / math.sqrt(known) if known > 0 else math.inf

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RunningScale":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.mean_square = self.mean_square.float()
        return self
