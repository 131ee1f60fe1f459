"""The regression of a head: its estimate against the target that came, in units of the target's running size."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .scale import RunningScale


def compare(
    scale: RunningScale, estimate: Tensor, target: Tensor, batch: int, gain: float
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Average the target's size into the scale, and take the target, in units of the scale, from the estimate.

        error = estimate - target * batch / (gain * scale)          0 where the target is not finite

    Half the gradient of the regression, up to the mean over all numbers. Both are detached, and the target is of a loss
    that is a mean over the batch.

    Args:
        batch: samples in that mean; a target may hold the rows of some of them.
        gain: see `Head`.

    Returns: the error, the target's size (its 2-norm), and one over the scale, infinite before the first target.

    Shapes: estimate, target, error [samples, *features].
    """
    target = target.to(estimate.dtype)
    size = torch.linalg.vector_norm(target)
    inverse = scale.update((size * (batch / target.numel() ** 0.5)).square())
    if isinstance(inverse, Tensor):
        error = torch.addcmul(estimate, target, inverse, value=-batch / gain).nan_to_num_(0.0, 0.0, 0.0)
    elif math.isfinite(float(size)) and math.isfinite(inverse):
        error = torch.add(estimate, target, alpha=-batch * inverse / gain)
    else:
        error = torch.zeros_like(estimate)
    return error, size, inverse


@dataclass(frozen=True)
class Comparison:
    """The sizes (2-norms) of one estimate, its target and their difference, on their device until they are read."""

    target: Tensor
    estimate: Tensor  # in units of the gain times the scale, as the error
    error: Tensor
    inverse: Tensor | float  # one over the scale
    batch: int
    numel: int
    gain: float

    def relative_error(self) -> Tensor | float:
        """The squared error relative to the target's square; nan for a target of zeros. A number on the CPU."""
        ratio = (self.error * (self.gain / self.batch) / (self.target * self.inverse)).square()
        return ratio if isinstance(self.inverse, Tensor) else float(ratio)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Cosine of estimate and target, squared error relative to the target's square (1: as good as saying nothing),
        and the target's root mean square per sample. Empty where the target was zero or not finite.
        """
        target, estimate, error = float(self.target), float(self.estimate), float(self.error)
        unit = self.gain / (float(self.inverse) * self.batch)
        if not 0 < target < math.inf:
            return {}
        estimate, error = estimate * unit, error * unit
        dot = (estimate**2 + target**2 - error**2) / 2
        return {
            "cosine": dot / (estimate * target) if estimate > 0 else 0.0,
            "error": (error / target) ** 2,
            "target_rms": target * self.batch / self.numel**0.5,
        }
