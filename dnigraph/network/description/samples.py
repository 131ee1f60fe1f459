"""Values that agents read: as the end of a graph, before anything has come, and how large their batch is."""

from typing import Any

import torch
from torch import Tensor


def entered(value: Any, learns: bool) -> Any:
    """The value detached from its graph; where it can carry a gradient and `learns`, it asks for one."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value.requires_grad_() if learns and (value.is_floating_point() or value.is_complex()) else value


def first_value(initial: Any, batch: int | None, like: Tensor | None) -> Any:
    """What an input reads before a message has come, for a batch of this size.

    Args:
        initial: a tensor, of one sample or of the batch; the sizes of one sample (zeros); or a function of the size.
        like: a tensor whose precision and device the value takes.
    """
    given = initial(batch) if callable(initial) else initial
    if isinstance(given, tuple | list):
        given = torch.zeros(1, *given)
    if not isinstance(given, Tensor):
        return given
    if batch is not None and given.dim() and len(given) == 1:
        given = given.expand(batch, *given.shape[1:])
    return given.to(like) if like is not None and given.is_floating_point() else given


def batch_of(values: Any) -> int | None:
    """The size of the first tensor that has dimensions."""
    return next((len(v) for v in values if isinstance(v, torch.Tensor) and v.dim()), None)
