"""Backward passes from several roots at once, each with a gradient of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def pairs(roots: tuple[Tensor, ...], gradients: Any) -> list[tuple[Tensor, Tensor]]:
    """Each root that has a gradient, with it."""
    return [(r, g) for r, g in zip(roots, gradients, strict=True) if g is not None and r.requires_grad]


def backward(roots: list[tuple[Tensor, Tensor]]) -> None:
    """One backward pass from all roots, outside autocast."""
    if roots:
        with no_autocast():
            torch.autograd.backward([r for r, _ in roots], [g for _, g in roots])


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """A backward pass runs outside autocast, as it would after the user's own `with` block."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
