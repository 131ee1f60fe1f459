"""The two layers that heads are made of beside linear maps and convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnigraph.conditions import Condition, OneHot, is_soft


class Normalise(nn.Module):
    """Batch normalisation without weight and bias, which also stands a single value per channel.

    Where there is only one, running statistics take the place of the batch's: a batch of one sample cannot normalise
    itself.

    Shapes: [batch, channels, *positions] -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.mean: Tensor
        self.variance: Tensor

    def forward(self, value: Tensor) -> Tensor:
        several = value.numel() > value.shape[1]
        return F.batch_norm(value, self.mean, self.variance, training=several)


class LabelShift(nn.Module):
    """What the label adds to each hidden unit, learned. The condition stays the head's, which checks labels with it.

    Shapes: label [batch, *positions] -> [batch, *positions, width].
    """

    def __init__(self, condition: Condition, width: int, spread: float) -> None:
        super().__init__()
        rows = condition.width + 1 if isinstance(condition, OneHot) else condition.width
        self.table = nn.Parameter(torch.empty(rows, width).uniform_(-spread, spread))
        if isinstance(condition, OneHot):  # the last row is of entries that have no label
            self.table.data[-1].zero_()

    def forward(self, condition: Condition, label: Tensor) -> Tensor:
        if not isinstance(condition, OneHot):
            return condition.encode(label).to(self.table.dtype) @ self.table
        if is_soft(label):
            return label.to(self.table.dtype) @ self.table[:-1]
        return F.embedding(condition.index(label), self.table, padding_idx=condition.labels)


def beside(shift: Tensor, positions: torch.Size) -> Tensor:
    """`shift` so that it can be added at `positions` ([batch, ...]): averaged where the label has other positions."""
    if shift.shape[:-1] == positions:
        return shift
    width = shift.shape[-1]
    if shift.shape[0] != positions[0]:  # beside a single number, which has no batch
        return shift.reshape(-1, width).mean(0)
    return shift.reshape(positions[0], -1, width).mean(1).view(positions[0], *[1] * (len(positions) - 1), width)
