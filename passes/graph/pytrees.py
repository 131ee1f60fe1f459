"""What goes into and comes out of a model: any nesting of containers, taken apart and put together again."""

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .walk import walk

PLAIN = (torch.Tensor, int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_CLOSED = (torch.nn.Module, type, functools.partial)
_DEPTH = 6  # how far an unknown object is searched for tensors


@dataclass(frozen=True)
class Tree:
    """The shape of a nested value: its containers, its constants, and a hole for each of its live leaves."""

    spec: pytree.TreeSpec
    constants: tuple[Any, ...]  # one entry for each leaf; `HOLE` where a live value belongs

    def build(self, values: list[Any] | tuple[Any, ...]) -> Any:
        """The nested value with `values` in its holes, in order."""
        feed = iter(values)
        return unflatten([next(feed) if c is HOLE else c for c in self.constants], self.spec)


def field_of(value: Any, name: str) -> Any:
    """What a model's output holds under a name: an entry of a dict, or an attribute. None: nothing."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


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


def unflatten(leaves: list[Any], spec: pytree.TreeSpec) -> Any:
    """The nested value again, each container of its own type: torch hands sizes back as tuples."""
    if not _holds_sizes(spec):
        return pytree.tree_unflatten(leaves, spec)
    feed = iter(leaves)
    children = [unflatten([next(feed) for _ in range(child.num_leaves)], child) for child in spec.children()]
    if spec.type is torch.Size:
        return torch.Size(children)
    return pytree.SUPPORTED_NODES[spec.type].unflatten_fn(children, spec.context)


def _holds_sizes(spec: pytree.TreeSpec) -> bool:
    return spec.type is torch.Size or any(map(_holds_sizes, spec.children()))


def take_apart(value: Any, live: Callable[[Any], bool] = torch.is_tensor) -> tuple[list[Any], Tree]:
    """The live leaves of a nested value, and the tree that takes them back."""
    leaves, spec = flatten(value)
    return [leaf for leaf in leaves if live(leaf)], Tree(spec, tuple(HOLE if live(leaf) else leaf for leaf in leaves))


def opens(leaf: Any) -> bool:
    """Whether an object of an unknown class holds tensors, so that it must be taken apart."""
    if isinstance(leaf, _CLOSED) or inspect.isroutine(leaf):
        return False
    return any(isinstance(value, torch.Tensor) for _, _, value in walk(leaf, _inside, _DEPTH))


def _inside(value: Any) -> Any:
    """What an object holds, for the search of tensors."""
    if isinstance(value, (*PLAIN, torch.nn.Module, type)):
        return None
    return value if isinstance(value, dict | list | tuple | set) else _fields(value)


def _fields(value: Any) -> dict[str, Any]:
    """What an object holds: the fields of a dataclass; else its slots and attributes."""
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    fields = {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                fields[name] = getattr(value, name)
    return fields | getattr(value, "__dict__", {})


def _parts(fields: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What an object holds, directly or in a dict or list: the field, the key there, the part."""
    for name, value in fields.items():
        yield name, None, value
        if isinstance(value, dict | list):
            yield from ((name, key, v) for key, v in (value.items() if isinstance(value, dict) else enumerate(value)))


# ---- back links: a part that refers weakly to the object that holds it, as the stores of a graph of torch_geometric do

_BackLink = tuple[str, Any, str]  # field and key of the part, and the field of the part


def _back_links(owner: Any, fields: dict[str, Any]) -> tuple[_BackLink, ...]:
    """Where the parts of an object refer back to it."""
    links = []
    for field, key, part in _parts(fields):
        for name, value in {} if isinstance(part, PLAIN) else getattr(part, "__dict__", {}).items():
            if isinstance(value, weakref.ref) and value() is owner:
                links.append((field, key, name))
    return tuple(links)


def _is_back_link(part: Any, value: Any) -> bool:
    """Whether a field of a part is such a link."""
    owner = value() if isinstance(value, weakref.ref) else None
    return owner is not None and any(one is part for _, _, one in _parts(_fields(owner)))


# ---- classes that torch's pytree does not know


def _register(kind: type, example: Any) -> None:
    if isinstance(example, dict):
        pytree.register_pytree_node(
            kind, lambda v: (list(v.values()), tuple(v)), lambda items, keys: _dict(kind, keys, items)
        )
    elif isinstance(example, list | set):
        pytree.register_pytree_node(kind, lambda v: (list(v), None), lambda items, _: kind(items))
    else:
        pytree.register_pytree_node(kind, _open_object, lambda items, context: _object(kind, context, items))


def _open_object(value: Any) -> tuple[list[Any], tuple[tuple[str, ...], tuple[_BackLink, ...]]]:
    fields = {name: v for name, v in _fields(value).items() if not _is_back_link(value, v)}
    return list(fields.values()), (tuple(fields), _back_links(value, fields))


def _object(kind: type, context: tuple[tuple[str, ...], tuple[_BackLink, ...]], items: Any) -> Any:
    result: Any = object.__new__(kind)  # not through __init__: it may take other arguments, or count instances
    fields = dict(zip(context[0], items, strict=True))
    for name, item in fields.items():
        _set(result, name, item)
    for field, key, name in context[1]:
        _set(fields[field] if key is None else fields[field][key], name, weakref.ref(result))
    return result


def _set(owner: Any, name: str, value: Any) -> None:
    """Set an attribute past properties and setters of the class."""
    if hasattr(owner, "__dict__"):
        owner.__dict__[name] = value
    else:
        object.__setattr__(owner, name, value)  # a slot


def _dict(kind: Any, keys: tuple[Any, ...], items: Any) -> Any:
    result = dict.__new__(kind)
    for key, item in zip(keys, items, strict=True):
        dict.__setitem__(result, key, item)
    return result


def rebuild(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Map `leaf` over what lists, tuples, dicts and slices hold."""
    if type(value) in (list, tuple, torch.Size):
        items = [rebuild(v, leaf) for v in value]
        return items if type(value) is list else tuple(items)
    if type(value) is dict:
        return {k: rebuild(v, leaf) for k, v in value.items()}
    if type(value) is slice:
        return slice(*rebuild((value.start, value.stop, value.step), leaf))
    return leaf(value)
