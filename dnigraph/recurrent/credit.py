"""Credit at a window's end: the gradient that stands for all later losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .options import Options


@dataclass(frozen=True)
class Credit:
    """The gradient of all later losses at a window's end, in rows [batch, width]; None: zero.

    Attributes:
        core: the gradient that the parameters learn from.
        chain: the gradient that the head's own target is computed from; if it is `core`, one backward pass serves both.
    """

    core: Tensor | None
    chain: Tensor | None

    def only(self, rows: Tensor) -> "Credit":
        """The credit of these sequences, none for the others. Shapes: rows bool [batch]."""
        if self.core is not self.chain:
            raise AssertionError("stored windows have one credit for core and chain")
        both = None if self.core is None else self.core.masked_fill(~rows[:, None], 0.0)
        return Credit(both, both)


NONE = Credit(None, None)


def guessed(options: Options, estimate: Tensor, ends: Tensor | None, strengths: tuple[float, float]) -> Credit:
    """The credit that a head's estimate gives.

    Args:
        estimate: [batch, width], of a loss that is a mean over the batch.
        ends: sequences that end here, with no later loss.
        strengths: scale and discount.
    """
    scale, discount = strengths
    consumed = alive(estimate, ends, options.head.centre)
    if scale == discount and options.boundary == "dni" and options.head.traces is None:
        both = consumed if scale == 1 else consumed * scale
        return Credit(both, both)
    # Traces use the raw estimate, without the centring and the cap of what the core consumes.
    chain = alive(estimate, ends, centre=False) if options.head.traces is not None else consumed
    if options.boundary == "shuffled":
        going = torch.arange(len(consumed), device=consumed.device) if ends is None else (~ends).nonzero()[:, 0]
        others = going[torch.randperm(len(going), device=consumed.device)]
        consumed = consumed.index_copy(0, going, consumed[others])
    return Credit(consumed * scale if scale else None, chain * discount)


@dataclass(frozen=True)
class Truth:
    """The true gradient at the end of a stored window, in rows; None: no loss follows that counts. And its share."""

    later: Tensor | None
    share: float


def mixed(options: Options, estimate: Tensor | None, truth: Truth, ends: Tensor | None, scale: float) -> Credit:
    """A share of the true gradient (lambda), the rest from the head."""
    share = truth.share
    parts = []
    if truth.later is not None and share:
        parts.append(alive(truth.later, ends, centre=False) * share)
    if estimate is not None and share < 1:
        parts.append(alive(estimate, ends, options.head.centre) * (scale * (1 - share)))
    both = sum(parts[1:], start=parts[0]) if parts else None
    return Credit(both, both)


def alive(rows: Tensor, ends: Tensor | None, centre: bool) -> Tensor:
    """The rows, zero where a sequence ends; with `centre`, minus their mean over the sequences that go on.

    While the core is at chance, the only predictable part of a gradient is a drift that all sequences share. The head
    follows it late, so the core overshoots and both oscillate. Without the mean, only differences between sequences are
    left.
    """
    if ends is None:
        return rows - rows.mean(0) if centre and len(rows) > 1 else rows
    going = ~ends[:, None]
    count = int(going.sum())
    if centre and count > 1:
        rows = rows - (rows * going).sum(0) / count
    return rows * going
