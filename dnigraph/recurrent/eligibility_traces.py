"""Eligibility traces: the head learns BP(lambda) online, without waiting for a sequence's end."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from .carried_state import Place
from .estimator import Estimator
from .layout import Layout


class Traces:
    """Keeps how each weight of the head contributed to earlier estimates of a sequence, carried on by Jacobians.

        J    = d last / d start of a window                                [batch, width, width]
        e    = discount * lambda * J e  +  d estimate / d weight           [batch, width, *weight]
        head's gradient = (estimate - target) e

    Summed over a sequence this is the regression to the lambda target of the forward view, exactly while nothing learns
    in between (a test holds it to 1e-10). lambda = 1 makes the target the true gradient.

    It costs width backward passes a window and batch * width * weights numbers: for small cores.

    Source: Pemberton & Costa 2024, arXiv 2401.07044 (accumulate BP(lambda)).
    """

    def __init__(self, estimator: Estimator, share: float) -> None:
        self.estimator, self.share = estimator, share  # share: lambda
        self.held: dict[str, Tensor] = {}
        self.jacobian: Tensor | None = None  # of the window behind the estimates in `held`

    def pass_window(
        self, place: Place, leaves: Sequence[Any], last: Sequence[Tensor], start: Sequence[Tensor], discount: float
    ) -> None:
        """Move the traces to where a window began, add the estimate there, and keep the window's Jacobian.

        Args:
            leaves: of the state at the window's start.
            discount: of later losses in the head's targets.
            last, start: its live leaves behind and before the window, whose graph is still there.
        """
        dtype = self.estimator.spec.dtype
        before, self.jacobian = self.jacobian, jacobian(last, start, self.estimator.layout).to(dtype)
        if place.behind_ends():
            self.held = {}
            return
        view = self.estimator.view(leaves)
        now = self._sensitivities(view, self.estimator.label(place.seen, len(view)))
        if self.held and before is not None:
            for name, trace in self.held.items():
                now[name] += self.share * discount * torch.einsum("bij,bj...->bi...", before, trace)
        if place.fresh is not None:
            for trace in now.values():
                trace[place.fresh] = 0
        self.held = now

    def learn(self, error: Tensor) -> None:
        """Add this window's share to the head's gradients. Shapes: error [batch, width], the regression's gradient."""
        parameters = dict(self.estimator.head.named_parameters())
        for name, trace in self.held.items():
            parameter = parameters[name]
            gradient = torch.einsum("bi,bi...->...", error, trace).to(
                parameter.dtype
            )  # under autocast the dtypes differ
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _sensitivities(self, view: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Shapes: -> [batch, width, *weight] by the weight's name."""
        head = self.estimator.head
        weights = {n: p.detach() for n, p in head.named_parameters() if p.requires_grad}

        def once(weights: dict[str, Tensor], row: Tensor, label: Tensor | None) -> Tensor:
            found: Tensor = functional_call(head, weights, (row[None], None if label is None else label[None]))
            return found[0]

        over = (None, 0, None if label is None else 0)
        found: dict[str, Tensor] = vmap(jacrev(once), in_dims=over)(weights, view, label)
        return {name: value.detach().to(weights[name].dtype) for name, value in found.items()}


def jacobian(last: Sequence[Tensor], start: Sequence[Tensor], layout: Layout) -> Tensor:
    """d last / d start for each sequence, by one batched backward pass. Shapes: -> [batch, width, width]."""
    rows = layout.rows([leaf.detach() for leaf in start])
    eye = torch.eye(layout.width, dtype=rows.dtype, device=rows.device)
    seeds = _seeds(eye, layout, last)
    pairs = [(leaf, seed) for leaf, seed in zip(last, seeds, strict=True) if leaf.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(start)
    if pairs:
        leaves, asked = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            leaves, list(start), asked, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    whole = [g if g is not None else s.new_zeros(layout.width, *s.shape) for g, s in zip(found, start, strict=True)]
    return torch.stack([layout.rows([g[i] for g in whole]) for i in range(layout.width)], 1).detach()


def _seeds(eye: Tensor, layout: Layout, last: Sequence[Tensor]) -> list[Tensor]:
    """One-hot gradients, one for each number of a state. Shapes: -> [width, *leaf] for each leaf."""
    batch = last[0].shape[layout.axes[layout.live[0]] or 0]
    asked = [layout.split(row.expand(batch, -1), last) for row in eye]
    return [torch.stack(column) for column in zip(*asked, strict=True)]
