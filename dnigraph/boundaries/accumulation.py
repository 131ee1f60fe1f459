"""Accumulated gradients of a head: their mean over the visits since its last update, not their sum."""

from typing import Any

import torch
from torch import Tensor, nn


class Mean:
    """Keeps the gradients of some parameters at the mean over the visits since their last update.

    The model's own gradients do not grow with the number of micro-batches where the user divides his loss by it. A head
    works in units of its targets' size, so that the division is undone there: its gradient would grow.

        visits before this backward pass: a, in it: n      gradient = (gradient * a + the new ones) / (a + n)

    With one visit for each update nothing is done to any number.
    """

    def __init__(self) -> None:
        self._visits: int | Tensor = 0  # those that the gradients hold
        self._before: int | Tensor = 0  # the same when the present backward pass began
        self._version, self._task, self._here = -1, -1, 0  # of the parameters; the backward pass, and its visits

    def settled(self, parameters: list[nn.Parameter]) -> None:
        """One more visit has its target, in a backward pass that has not reached the parameters yet."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            version = sum([p._version for p in parameters])
            gradients = _gradients(parameters) if version == self._version else []
            before = _unless_zero(self._visits, gradients)
            self._task, self._version, self._before, self._here, self._visits = task, version, before, 1, 1
            if isinstance(before, Tensor) or before:
                for gradient in gradients:
                    gradient.mul_(before)
                self._divide_at_the_end(parameters)
        else:
            self._here += 1
            if self._here == 2 and isinstance(self._before, int) and self._before == 0:
                self._divide_at_the_end(parameters)

    def _divide_at_the_end(self, parameters: list[nn.Parameter]) -> None:
        """When all gradients of this backward pass have been added up."""

        def divide() -> None:
            self._visits = self._before + self._here
            with torch.no_grad():
                for gradient in _gradients(parameters):
                    gradient.div_(self._visits)

        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(divide)


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _unless_zero(visits: "int | Tensor", gradients: list[Tensor]) -> "int | Tensor":
    """The number of visits that the gradients hold: none where an optimiser has set them to zero.

    One that writes to the data behind a parameter counts no version. On an accelerator the answer stays there.
    """
    plain = [g for g in reversed(gradients) if type(g) is Tensor and g.layout == torch.strided]
    if not plain:
        return visits if gradients else 0
    if plain[0].device.type == "cpu":
        return visits if any(bool(g.any()) for g in plain) else 0
    return torch.stack([g.any() for g in plain if g.device == plain[0].device]).any() * visits
