"""The head's condition: a label that the user gives, or the inputs of the window before."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..heads.conditions import Condition, ConditionChoice
from .core import Core
from .estimator import Estimator
from .recurrent_error import RecurrentError
from .window import Window

SEEN = "input"  # condition="input" means `Seen`


class Seen(Condition):
    """The inputs of a window, side by side; a window shorter than the horizon is padded with zeros in front."""

    def __init__(self, horizon: int, width: int) -> None:
        super().__init__()
        self.horizon, self.width = horizon, horizon * width

    def encode(self, label: Tensor) -> Tensor:
        return label

    def rows(self, window: Window, core: Core) -> Tensor:
        """Shapes: -> [batch, horizon * width]."""
        leaves = [t if core.batch_first else t.movedim(1, 0) for t in _real(window.x)]
        wide = torch.cat([leaf.flatten(2) if leaf.ndim > 2 else leaf[..., None] for leaf in leaves], -1)
        missing = wide.new_zeros(window.batch, self.horizon - window.length, wide.shape[-1])
        return torch.cat((missing, wide), 1).flatten(1)


def seen_after(estimator: Estimator | None, window: Window, core: Core) -> Any:
    """What the head looks at beside the state after a window: a label, the window's inputs, or None."""
    condition = None if estimator is None else estimator.head.condition
    return condition.rows(window, core) if isinstance(condition, Seen) else window.label


def make_condition(choice: "ConditionChoice | str", horizon: int, window: Window) -> ConditionChoice:
    """The chosen condition; "input" stands for the inputs of the last window.

    Raises:
        RecurrentError: there is no such word, or the inputs are not numbers.
    """
    if not isinstance(choice, str):
        return choice
    if choice != SEEN:
        raise RecurrentError([f"there is no condition {choice!r}"], 'say condition="input", or dg.one_hot(classes)')
    leaves = _real(window.x)
    if not leaves:
        way = "embed them in front of the core, or use condition=dg.embedded(...) and label="
        raise RecurrentError(["the inputs hold no floating-point tensor that a head could look at"], way)
    width = sum(leaf.shape[2:].numel() for leaf in leaves)
    return Seen(horizon, width)


def _real(x: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(x) if isinstance(t, Tensor) and t.is_floating_point()]
