"""The one walk over what objects hold. Each caller says what stays closed to it, and how deep it looks."""

from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import Any

ATOMS = frozenset((bool, int, float, str, bytes, type(None)))  # hold nothing, and are most of what a module holds


def walk(
    root: Any,
    inside: Callable[[Any], Any],
    depth: int,
    anew: type | tuple[()] = (),
    opened: dict[int, int] | None = None,
) -> Iterator[tuple[Any, Any, Any]]:
    """What can be reached from `root`, itself included, depth first: the table that holds it, its key there, itself.

    Args:
        inside: the table (dict or sequence) of what a value holds; None where it stays closed.
        depth: how many tables lie between the root and the deepest value.
        anew: a class whose objects are looked into to the full depth, wherever they are found.
        opened: id -> depth that was left, of what earlier walks opened; those values are not visited again.
    """
    opened = {} if opened is None else opened
    pending: list[tuple[Any, Any, Any, int]] = [(None, None, root, depth)]
    while pending:
        table, key, value, left = pending.pop()
        if opened.get(id(value), -1) >= left:
            continue
        yield table, key, value
        contents = inside(value) if left else None
        if contents is None:
            continue
        below = depth if isinstance(value, anew) else left - 1
        opened[id(value)] = below + 1
        if contents:  # most tables of hooks are empty
            items = contents.items() if isinstance(contents, dict) else enumerate(contents)
            pending += [(contents, k, v, below) for k, v in items if type(v) not in ATOMS][::-1]


def slots_of(kind: type) -> dict[str, MemberDescriptorType]:
    """The slots of a class and of those above it, by the name that an object has them under: `_Class__x` of `__x`."""
    slots: dict[str, MemberDescriptorType] = {}
    for one in kind.__mro__:
        if "__slots__" in one.__dict__:
            for name, value in one.__dict__.items():
                if type(value) is MemberDescriptorType:
                    slots.setdefault(name, value)
    return slots


def filled_slots(value: Any) -> dict[str, Any]:
    """What stands in the slots of an object; an empty one is left out."""
    filled = {}
    for name, slot in slots_of(type(value)).items():
        try:
            filled[name] = slot.__get__(value)
        except AttributeError:  # nothing was set
            continue
    return filled
