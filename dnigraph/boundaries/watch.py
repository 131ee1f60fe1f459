"""What goes wrong in training without an error: told once, in plain words, with the way out."""

import math
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from torch import Tensor
from torch.autograd import forward_ad


class TrainingWarning(UserWarning):
    """Training goes on, and something in it does not do what it is there for."""


def transformed() -> bool:
    """Whether this runs under a transform of `torch.func`, or in forward-mode differentiation."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


BEFORE, AFTER = 24, 8  # targets before a jump, and after it, that are looked at
MEASUREMENTS = 8  # of the error; their median is judged
WORSE = 1.2  # a median of the error above it is told: heads that learn slowly, from noisy targets, have up to 1.1


@dataclass
class HeadHistory:
    """The last targets' sizes and errors of one head: enough to see a jump, and that it is worse than nothing.

    On an accelerator all of it stays on the device and is read every 64 visits.
    """

    errors: list["Tensor | float"] = field(default_factory=list)  # relative squared errors
    sizes: list["Tensor | float"] = field(default_factory=list)  # root mean squares of the targets
    form: tuple[int, int] = (0, 0)  # samples and numbers of a target: others have other sizes

    def target(self, size: "Tensor | float", batch: int, numel: int) -> bool:
        """One more target. Returns whether their size has jumped, by two or more, and stays there."""
        if self.form != (batch, numel):
            self.form, self.sizes = (batch, numel), []
        self.sizes.append(size)
        every = AFTER if isinstance(size, float) else 64
        if len(self.sizes) < BEFORE + AFTER or len(self.sizes) % every:
            return False
        found = _jumps(_numbers(self.sizes))
        self.sizes = self.sizes[-(BEFORE + AFTER) :] if len(self.sizes) >= BEFORE + 2 * AFTER else self.sizes
        return found

    def error(self, error: "Tensor | float") -> float | None:
        """One more error. Returns the median of the last ones where that is worse than saying nothing."""
        self.errors.append(error)
        if len(self.errors) < MEASUREMENTS:
            return None
        numbers = [number for number in _numbers(self.errors) if number == number]  # nan: there was no target
        self.errors = self.errors[1:] if isinstance(error, float) else []
        middle = median(numbers) if len(numbers) == MEASUREMENTS else 0.0
        return middle if middle > WORSE else None


def _numbers(values: list["Tensor | float"]) -> list[float]:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != len(values):
        return [float(value) for value in values]
    numbers: list[float] = torch.stack(tensors).tolist()
    return numbers


def _jumps(sizes: list[float]) -> bool:
    """Whether sizes jump somewhere from one level to another, and are quiet before and after."""
    logs = [math.log2(size) for size in sizes if 0 < size < math.inf]
    return any(_jump(logs[i - BEFORE : i], logs[i : i + AFTER]) for i in range(BEFORE, len(logs) - AFTER + 1))


def _jump(before: list[float], after: list[float]) -> bool:
    by = fmean(after) - fmean(before)
    if abs(by) < 0.8:  # a factor of 1.75: two, and noise
        return False
    if by < 0:
        before, after = [-b for b in before], [-a for a in after]
    apart = min(after) - max(before)  # below a trend, neighbours are as near to each other as any
    drifts = abs(fmean(before[: BEFORE // 2]) - fmean(before[BEFORE // 2 :])) > 0.3
    return apart > 0.15 and not drifts and abs(fmean(after[: AFTER // 2]) - fmean(after[AFTER // 2 :])) < 0.4
