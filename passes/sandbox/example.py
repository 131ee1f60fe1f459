"""The inputs of a call as the graph takes them: their names, and other values to try it on."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..graph.pytrees import flatten

_MOST_SIZES = 4  # dimensions that are tried; a model takes other sizes in the first few, if in any


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each input leaf: the argument's name, and its number where an argument holds several leaves.

    No two are the same.
    """
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(args)]
    others = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    positional += [f"{others}_{i}" for i in range(len(args) - len(positional))]
    names: list[str] = []
    for name, count in zip([*positional, *kwargs], flatten([*args, *kwargs.values()])[1].leaf_counts(), strict=True):
        names += [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
    results = dict[str, None]()
    for name in names:
        own = name
        while own in results or (own != name and own in names):
            own += "_"
        results[own] = None
    return list(results)


def other_inputs(leaves: list[Any]) -> dict[str, list[Any]]:
    """Inputs like these, by what is other in them: numbers, and a size where there is a batch dimension."""
    longer = one_more_row(leaves)
    return ({} if longer is None else {"one more row": longer}) | {"other values": varied(leaves)}


def other_sizes(leaves: list[Any]) -> list[list[Any]]:
    """The same inputs one longer in a dimension behind the batch, all that are as long there: once for each."""
    lengths = [leaf.shape[1:] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided]
    places = dict.fromkeys((dim, size) for shape in lengths for dim, size in enumerate(shape, 1) if size)

    def longer(dim: int, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(leaf: torch.Tensor) -> torch.Tensor:
            fits = leaf.dim() > dim and leaf.shape[dim] == size
            return torch.cat([leaf, leaf.narrow(dim, 0, 1)], dim) if fits else leaf

        return change

    return [_mapped(leaves, longer(dim, size)) for dim, size in list(places)[:_MOST_SIZES]]


def one_more_row(leaves: list[Any]) -> list[Any] | None:
    """The same inputs rolled by a row and with one row more; `None` where there is no batch dimension."""
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not sizes or sizes[0] == 0:
        return None

    def longer(leaf: torch.Tensor) -> torch.Tensor:
        if not leaf.dim() or leaf.shape[0] != sizes[0]:
            return leaf
        return torch.cat([leaf.roll(1, 0), leaf[:1]])

    return _mapped(leaves, longer)


def varied(leaves: list[Any]) -> list[Any]:
    """Other values of the same sizes, in the same range: rows rolled, and numbers a little nearer to zero."""
    return _mapped(leaves, lambda leaf: leaf.roll(1, 0) if leaf.dim() else leaf)


def _mapped(leaves: list[Any], change: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    results: dict[int, Any] = {}  # one tensor given twice stays one
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor) or leaf.layout != torch.strided or id(leaf) in results:
            continue
        with torch.no_grad():
            result = change(leaf)
            if result.is_floating_point() and not result.is_meta and not _is_mask(result):
                result = result * 0.875  # any factor below one: values stay in the range of the example
        results[id(leaf)] = result.detach().requires_grad_(leaf.requires_grad)
    return [results.get(id(leaf), leaf) for leaf in leaves]


def _is_mask(tensor: torch.Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())
