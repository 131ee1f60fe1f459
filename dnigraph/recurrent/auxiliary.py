"""The auxiliary task: the core predicts the head's estimate at the next window's end."""

import torch
from torch import Tensor, nn

from ..heads.bottleneck import RANK, WIDE
from ..heads.layers import silent


class Auxiliary(nn.Module):
    """A linear reader of the state behind a window's first step, trained with the core. It starts at zero.

        state ─► step 0 ─► step 1 ─► ... ─► step T-1 ─► head's estimate
                   └─► reader ─► foretold                  │
                           └──── mean square difference ◄──┘   joins the core's loss

    It couples two windows: whatever the next estimate needs must be in the state T steps before it.

    Shapes: view, estimate [batch, width].

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1 ("auxiliary task").
    """

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.reader: nn.Module
        if width <= WIDE:
            self.reader = silent(nn.Linear(width, width))
        else:
            self.reader = nn.Sequential(nn.Linear(width, RANK, bias=False), silent(nn.Linear(RANK, width)))
        self.to(like.device, torch.promote_types(like.dtype, torch.float32))

    def loss(self, view: Tensor, estimate: Tensor) -> Tensor:
        """The mean square difference of reader and estimate, both in units of the targets' size."""
        found: Tensor = torch.nn.functional.mse_loss(self.reader(view), estimate)
        return found
