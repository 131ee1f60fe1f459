"""When two values are equal: bit by bit, but for not-a-number, which equals itself."""

from typing import Any

import numpy as np
import torch


def equal(one: Any, other: Any) -> bool:
    """Whether two values are of one type and equal; lists and tuples are compared item by item."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return equal_tensors(one.detach(), other.detach())
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    return one is other or bool(one == other or (one != one and other != other))


def equal_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have one shape, type, device and layout, and equal numbers, if they have any."""
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout or one.device != other.device:
        return False
    if one.is_meta:
        return True
    if one.layout != torch.strided:
        return equal_tensors(one.to_dense(), other.to_dense())
    if one.is_floating_point() or one.is_complex():
        return bool(((one == other) | ((one != one) & (other != other))).all())
    return torch.equal(one, other)
