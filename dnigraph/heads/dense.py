"""Heads for features and tokens: one vector in, one vector out, at each position alike."""

from itertools import pairwise

from torch import Tensor, nn

from .conditions import condition_for
from .head import Head
from .layers import Hidden, LabelShift, beside, silent
from .spec import CrossingSpec


class Dense(Head):
    """Hidden layers of `hidden` units each, and a linear output that starts at zero.

        value ─► Linear ─► + ─► Normalise ─► ReLU ─► ... ─► Linear (zero) ─► estimate
                 label ─► table ─┘

    Without hidden layers it is one linear map, with a bias of its own for each label.

    Shapes: [batch, *positions, width] -> the same; [batch] and a single number count as width 1.
    """

    def __init__(self, spec: CrossingSpec, width: int, hidden: tuple[int, ...], name: str) -> None:
        condition = condition_for(spec)
        super().__init__(name, condition)
        self.width = width
        self.hidden = nn.ModuleList()
        for below, above in pairwise((width, *hidden)):
            self.hidden.append(Hidden(nn.Linear(below, above, bias=False)))
        self.output = silent(nn.Linear((width, *hidden)[-1], width))
        self.shift = None
        if condition is not None:
            self.shift = LabelShift(condition, hidden[0]) if hidden else LabelShift(condition, width, spread=0.0)

    def forward(self, value: Tensor, label: Tensor | None) -> Tensor:
        positions = value.shape[:-1] if value.ndim > 1 else value.reshape(-1).shape
        rows, shift = value.reshape(-1, self.width), None
        if self.shift is not None and self.condition is not None and label is not None:
            shift = beside(self.shift(self.condition, label), positions).flatten(0, -2)
        for i, hidden in enumerate(self.hidden):
            rows = hidden(rows, shift if i == 0 else None)
        estimate: Tensor = self.output(rows)
        if shift is not None and not self.hidden:
            estimate = estimate + shift
        return estimate.view(value.shape)
