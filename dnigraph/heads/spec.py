"""A crossing as the factories of heads, boundaries and conditions see it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class CrossingSpec:
    """A crossing as factories see it. Of the sizes, only that of features or channels is the same in every call."""

    name: str  # for people: "layer2"
    shape: tuple[int, ...]  # of the example, batch first
    dtype: torch.dtype
    device: torch.device
    condition: "nn.Module | Callable[[CrossingSpec], nn.Module] | None" = None  # what the user chose
    batch_dim: int | None = 0  # where the model keeps the batch; None: nowhere. `shape` has it first in any case
    line: bool = False  # a shape of three is [batch, channels, positions], as 1d convolutions make, and not tokens

    @property
    def kind(self) -> Literal["features", "maps", "tokens"]:
        """features: [batch, D], [batch], a number; maps: [batch, C, H, W], [batch, C, D, H, W], and [batch, C, T] with
        `line`; tokens: all others.
        """
        if len(self.shape) <= 2:
            return "features"
        return "maps" if self.line or len(self.shape) in (4, 5) else "tokens"

    @property
    def width(self) -> int:
        """Numbers at one position: D of features and tokens, C of maps, 1 of [batch] and of a number."""
        if len(self.shape) <= 1:
            return 1
        return self.shape[1] if self.kind == "maps" else self.shape[-1]
