"""Values that agents read: as the end of a graph, before anything has come, and how large their batch is."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


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
    value = initial(batch) if callable(initial) else initial
    if isinstance(value, tuple | list):
        value = torch.zeros(1, *value)
    if not isinstance(value, Tensor):
        return value
    if batch is not None and value.dim() and len(value) == 1:
        value = value.expand(batch, *value.shape[1:])
    return value.to(like) if like is not None and value.is_floating_point() else value


def shapes(value: Any) -> str:
    """The shapes and dtypes of the tensors in a value, for an error."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    found = [(path, t) for path, t in pytree.tree_flatten_with_path(value)[0] if isinstance(t, Tensor)]
    named = [f"{pytree.keystr(path)} {shapes(t)}" for path, t in found]
    return f"a {type(value).__name__}" + (f" of {', '.join(named)}" if named else "")


def batch_of(values: Any) -> int | None:
    """The size of the first tensor that has dimensions."""
    return next((len(v) for v in values if isinstance(v, torch.Tensor) and v.dim()), None)
