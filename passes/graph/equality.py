"""When two values are the same: bit for bit, but for not-a-number, which equals itself."""

from typing import Any

import torch


def same_values(one: list[Any], other: list[Any]) -> bool:
    """Whether two lists of results are bitwise equal; not-a-number equals itself."""
    return len(one) == len(other) and all(map(_equal_results, one, other))


def _equal_results(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return equal_tensors(x.detach(), y.detach())
    return type(x) is type(y) and bool(x == y or x != x)


def equal_tensors(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Bitwise equality, but for not-a-number, which equals itself."""
    if x.shape != y.shape or x.dtype != y.dtype or x.layout != y.layout:
        return False
    if x.layout != torch.strided:
        return equal_tensors(x.to_dense(), y.to_dense())
    if x.is_floating_point() or x.is_complex():
        return bool(((x == y) | ((x != x) & (y != y))).all())
    return torch.equal(x, y)
