"""Heads for features and tokens: one vector in, one vector out, at each position alike."""

import torch.nn.functional as F
from torch import Tensor, nn

from dnigraph.conditions import condition_for

from .base import GAIN, Head
from .layers import LabelShift, Normalise, beside
from .spec import CrossingSpec

SPREAD = 0.5  # of the label's first shifts, beside hidden values of size 1: it matters from the first step


class Linear(Head):
    """One linear map, with a bias of its own for each label.

    Shapes: [batch, *positions, width] -> the same; [batch] and a single number count as width 1.
    """

    def __init__(self, spec: CrossingSpec, width: int) -> None:
        super().__init__("linear", condition_for(spec))
        self.width = width
        self.output = silent(nn.Linear(width, width))
        self.shift = LabelShift(self.condition, width, 0.0) if self.condition is not None else None

    def forward(self, value: Tensor, label: Tensor | None) -> Tensor:
        rows = value.reshape(-1, self.width) if value.ndim < 2 else value
        estimate: Tensor = self.output(rows)
        if self.shift is not None and self.condition is not None and label is not None:
            estimate = estimate + beside(self.shift(self.condition, label), rows.shape[:-1])
        return (estimate * GAIN).view_as(value)


class Dense(Head):
    """`layers` hidden layers of `hidden` units, and a linear output that starts at zero.

        value ─► Linear ─► Normalise ─► + ─► ReLU ─► Linear (zero) ─► times GAIN ─► estimate
                              label ─► table ─┘

    Added to a normalised layer the label acts as the bias that its class has there, whatever the size of the value is.

    Shapes: [batch, *positions, width] -> the same; [batch] and a single number count as width 1.
    """

    def __init__(self, spec: CrossingSpec, width: int, hidden: int, layers: int, name: str) -> None:
        super().__init__(name, condition_for(spec))
        self.width = width
        self.hidden = nn.ModuleList(nn.Linear(width if i == 0 else hidden, hidden, bias=False) for i in range(layers))
        self.norms = nn.ModuleList(Normalise(hidden) for _ in range(layers))
        self.shift = LabelShift(self.condition, hidden, SPREAD / GAIN) if self.condition is not None else None
        self.output = silent(nn.Linear(hidden, width))
        for linear in self.hidden:
            linear.weight.data /= GAIN  # type: ignore[union-attr, operator]

    def forward(self, value: Tensor, label: Tensor | None) -> Tensor:
        rows = value.reshape(-1, self.width) if value.ndim < 2 else value
        positions = rows.shape[:-1]
        for i, (linear, norm) in enumerate(zip(self.hidden, self.norms, strict=True)):
            units = norm(linear(rows).flatten(0, -2)).view(*positions, -1)
            if i == 0 and self.shift is not None and self.condition is not None and label is not None:
                units = units + beside(self.shift(self.condition, label), positions) * GAIN
            rows = F.relu(units)
        estimate: Tensor = self.output(rows)
        return (estimate * GAIN).view_as(value)


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero, so that a head says nothing before it has learned something."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
