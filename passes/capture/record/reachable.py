"""What a function or an object of any class holds on to."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .symbols import is_live

_DEPTH = 5  # how far is searched
_CLOSED = (
    int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device,
    nn.Module, type, types.ModuleType, types.BuiltinFunctionType,
)  # fmt: skip


def reachable(value: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """The tensors and symbols in a value: in its items, its fields, its closure, its bound arguments.

    Modules stay closed: what is set on them in a forward is written down there.
    """
    if is_live(value):
        yield value
    elif depth and not isinstance(value, _CLOSED):
        for item in _held(value):
            yield from reachable(item, depth - 1)


def _held(value: Any) -> Iterator[Any]:
    """What a container, a function or an object of any class holds."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from value.__defaults__ or ()
    elif hasattr(value, "__dict__"):
        yield from list(vars(value).values())


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
