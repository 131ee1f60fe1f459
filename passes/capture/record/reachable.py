"""What a function or an object of any class holds of the run that is recorded."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...graph.walk import walk
from .symbols import is_live

_DEPTH = 5  # how deep is searched: objects handed to torch, and attributes set in a forward, are shallow
_CLOSED = (
    int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device,
    nn.Module, type, types.ModuleType, types.BuiltinFunctionType,
)  # fmt: skip


def reachable(value: Any) -> Iterator[Any]:
    """The tensors and symbols in a value: in its items, its fields, its closure, its bound arguments.

    Modules stay closed: attributes that are set on them in a forward are recorded there.
    """
    return (held for _, _, held in walk(value, _inside, _DEPTH) if is_live(held))


def _inside(value: Any) -> Any:
    """What a container, a function or an object of any class holds."""
    if is_live(value) or isinstance(value, _CLOSED):
        return None
    if isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return [*map(_content, value.__closure__ or ()), *(value.__defaults__ or ())]
    return getattr(value, "__dict__", None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
