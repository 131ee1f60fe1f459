"""The backward pass of a window: from the loss and the credit at its end to the gradient at its start."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .credit import Credit
from .layout import Layout


def backward(
    loss: Tensor | None,
    last: Sequence[Tensor],
    start: Sequence[Tensor],
    layout: Layout,
    credit: Credit,
    parameters: Sequence[Tensor],
) -> Tensor | None:
    """Gradients of the loss and the credit: added to the parameters' `.grad`, and returned for the window's start.

        start ◄──────────── window ◄──────────── last ◄─ credit
          │                   │ ▲
        target            parameters └─ loss

    The start's gradient is that of this window's losses plus the credit for all later ones, each loss counted once. It
    is the target of the head that read the state at the start.

    Shapes: last and start are live leaves; -> [batch, width], or None where nothing came back.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1.
    """
    if credit.core is credit.chain:
        roots, seeds = _roots(loss, last, layout, credit.core)
        if not roots:
            return None
        torch.autograd.backward(roots, seeds)
        found = [leaf.grad for leaf in start]
        for leaf in start:
            leaf.grad = None
        return _target(found, start, layout)
    roots, seeds = _roots(loss, last, layout, credit.chain)
    found = [None] * len(start)
    if roots:
        found = list(torch.autograd.grad(roots, start, seeds, retain_graph=True, allow_unused=True))
    roots, seeds = _roots(loss, last, layout, credit.core)
    trained = [p for p in parameters if p.requires_grad]
    if roots and trained:
        torch.autograd.backward(roots, seeds, inputs=trained)
    return _target(found, start, layout)


def _roots(loss: Tensor | None, last: Sequence[Tensor], layout: Layout, rows: Tensor | None) -> Any:
    roots: list[Tensor] = []
    seeds: list[Tensor | None] = []
    if loss is not None and loss.requires_grad:
        roots, seeds = [loss], [None]
    if rows is not None:
        pairs = [(leaf, seed) for leaf, seed in zip(last, layout.split(rows, last), strict=True) if leaf.requires_grad]
        roots, seeds = roots + [p[0] for p in pairs], seeds + [p[1] for p in pairs]
    return roots, seeds


def _target(found: Sequence[Tensor | None], start: Sequence[Tensor], layout: Layout) -> Tensor | None:
    if all(gradient is None for gradient in found):
        return None
    return layout.rows([torch.zeros_like(s) if g is None else g for g, s in zip(found, start, strict=True)])
