"""What goes into and comes out of a model: any nesting of containers, taken apart and put together again."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

PLAIN = (torch.Tensor, int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_DEPTH = 6  # how far an unknown object is searched for tensors


@dataclass(frozen=True)
class Tree:
    """The shape of a nested value: its containers, its constants, and a hole for each of its live leaves."""

    spec: pytree.TreeSpec
    constants: tuple[Any, ...]  # one entry for each leaf; `HOLE` where a live value belongs

    def build(self, values: list[Any] | tuple[Any, ...]) -> Any:
        """The nested value with `values` in its holes, in order."""
        feed = iter(values)
        return pytree.tree_unflatten([next(feed) if c is HOLE else c for c in self.constants], self.spec)


class _Hole:
    def __repr__(self) -> str:
        return "HOLE"


HOLE = _Hole()


def flatten(value: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of a nested value and its structure. Classes that torch does not know are registered first."""
    leaves, spec = pytree.tree_flatten(value)
    while unknown := {type(leaf): leaf for leaf in leaves if not isinstance(leaf, PLAIN) and opens(leaf)}:
        for kind, leaf in unknown.items():
            _register(kind, leaf)
        leaves, spec = pytree.tree_flatten(value)
    return leaves, spec


def take_apart(value: Any, live: Callable[[Any], bool] = torch.is_tensor) -> tuple[list[Any], Tree]:
    """The live leaves of a nested value, and the tree that takes them back."""
    leaves, spec = flatten(value)
    return [leaf for leaf in leaves if live(leaf)], Tree(spec, tuple(HOLE if live(leaf) else leaf for leaf in leaves))


def opens(leaf: Any) -> bool:
    """Whether an object of an unknown class holds tensors, so that it must be taken apart."""
    if isinstance(leaf, torch.nn.Module | type) or callable(leaf):
        return False
    return _holds_tensor(leaf, _DEPTH)


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if depth == 0 or isinstance(value, (*PLAIN, torch.nn.Module, type)):
        return False
    return any(_holds_tensor(item, depth - 1) for item in _items(value))


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value
    else:
        yield from _fields(value).values()


def _fields(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    return dict(getattr(value, "__dict__", {}))


def _register(kind: type, example: Any) -> None:
    if isinstance(example, tuple) and hasattr(example, "_fields"):  # a subclass of a named tuple
        pytree.register_pytree_node(kind, lambda v: (list(v), None), lambda items, _: kind(*items))
    elif isinstance(example, dict):
        pytree.register_pytree_node(
            kind, lambda v: (list(v.values()), tuple(v)), lambda items, keys: _dict(kind, keys, items)
        )
    elif isinstance(example, list | set):
        pytree.register_pytree_node(kind, lambda v: (list(v), None), lambda items, _: kind(items))
    else:
        pytree.register_pytree_node(kind, _open_object, lambda items, keys: _object(kind, keys, items))


def _open_object(value: Any) -> tuple[list[Any], tuple[str, ...]]:
    fields = _fields(value)
    return list(fields.values()), tuple(fields)


def _object(kind: type, keys: tuple[str, ...], items: Any) -> Any:
    made: Any = object.__new__(kind)  # not through __init__: it may take other arguments, or count instances
    for key, item in zip(keys, items, strict=True):
        object.__setattr__(made, key, item)
    return made


def _dict(kind: Any, keys: tuple[Any, ...], items: Any) -> Any:
    made = dict.__new__(kind)
    for key, item in zip(keys, items, strict=True):
        dict.__setitem__(made, key, item)
    return made
