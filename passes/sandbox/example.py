"""The inputs of a call as the graph takes them: their names, and other values to try it on."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each input leaf: the argument's name, and its number where an argument holds several leaves."""
    known = list(inspect.signature(model.forward).parameters)
    positional = [known[i] if i < len(known) else f"input_{i}" for i in range(len(args))]
    names = []
    for name, value in [*zip(positional, args, strict=True), *kwargs.items()]:
        count = len(pytree.tree_leaves(value))
        names += [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
    return names


def one_more_row(leaves: list[Any]) -> list[Any] | None:
    """The same inputs rolled by a row and with one row more; `None` where no batch dimension is in sight."""
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes or sizes[0] == 0:
        return None

    def grown(leaf: torch.Tensor) -> torch.Tensor:
        if not leaf.dim() or leaf.shape[0] != sizes[0]:
            return leaf
        return torch.cat([leaf.roll(1, 0), leaf[:1]])

    return _mapped(leaves, grown)


def varied(leaves: list[Any]) -> list[Any]:
    """Other values of the same sizes, in the same range: rows rolled, and numbers a little nearer to zero."""
    return _mapped(leaves, lambda leaf: leaf.roll(1, 0) if leaf.dim() else leaf)


def _mapped(leaves: list[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    made: dict[int, Any] = {}  # one tensor given twice stays one
    for leaf in leaves:
        if id(leaf) not in made:
            made[id(leaf)] = _changed(leaf, change) if isinstance(leaf, torch.Tensor) else leaf
    return [made[id(leaf)] for leaf in leaves]


def _changed(leaf: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    if leaf.layout != torch.strided:
        return leaf
    with torch.no_grad():
        made = change(leaf)
        if made.is_floating_point() and not bool(((made == 0) | (made == 1)).all()):  # not a mask
            made = made * 0.875
    return made.detach().requires_grad_(leaf.requires_grad)
