"""A digest of what a Python value holds: equal for values that a model's code cannot tell apart, and hashable."""

import array
import collections
import enum
import functools
import struct
import types
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from .pytrees import fields_of

LIMIT = 2000  # values in one digest: it is made in every call
_BY_VALUE = (int, bool, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format)
_BY_IDENTITY = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType, torch.nn.Module, torch.Tensor)
_HASHED = frozenset(("Fraction", "Decimal", "range", "UUID", "Pattern", "date", "datetime", "timedelta"))


class TooLargeError(ValueError):
    """A value holds more than a digest can."""


class Same:
    """Stands for an object in a digest: equal for that object alone."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def digest(value: Any) -> Hashable:
    """The digest of a value.

    Numbers count bit by bit (-0.0 is not 0.0, and a nan is itself), arrays by their bytes, containers by their type and
    items, functions by their code, closure and defaults, other objects by their class and fields. Tensors, modules,
    classes and what has no fields are the objects that they are.

    Raises:
        TooLargeError: it holds more than `LIMIT` values.
    """
    return _Digester().of(value)


class _Digester:
    def __init__(self) -> None:
        self.count = 0
        self.open: dict[int, int] = {}  # id of what is being looked into -> its number: values may hold each other

    def of(self, value: Any) -> Hashable:
        kind = type(value)
        if kind in _BY_VALUE:
            return kind, value
        if kind is float:
            return kind, struct.pack("d", value)
        self.count += 1
        if self.count > LIMIT:
            raise TooLargeError(f"it holds more than {LIMIT} values")
        if isinstance(value, _BY_IDENTITY):
            return Same(value)
        if id(value) in self.open:
            return "again", self.open[id(value)]
        self.open[id(value)] = len(self.open)
        try:
            return self._inside(kind, value)
        finally:
            del self.open[id(value)]

    def _inside(self, kind: type, value: Any) -> Hashable:
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.hasobject:
                return kind, value.shape, self._all(value.flat)
            self.count += value.size // 8
            return kind, value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, bytearray | array.array | memoryview):
            return kind, getattr(value, "typecode", None), bytes(value)
        if isinstance(value, dict):
            pairs = [(self.of(k), self.of(v)) for k, v in value.items()]
            return kind, self.of(getattr(value, "default_factory", None)), tuple(pairs), self._own(value)
        if isinstance(value, list | tuple | collections.deque):
            return kind, self._all(value), self._own(value)
        if isinstance(value, set | frozenset):
            return kind, frozenset(map(self.of, value)), self._own(value)
        if isinstance(value, enum.Enum):
            return kind, value.name
        if isinstance(value, complex | slice):
            parts = (value.real, value.imag) if isinstance(value, complex) else (value.start, value.stop, value.step)
            return kind, self._all(parts)
        if isinstance(value, int | float | str | bytes) or kind.__name__ in _HASHED:
            return kind, value, self._own(value)
        if isinstance(value, types.FunctionType):
            cells = [_content(cell) for cell in value.__closure__ or ()]
            return Same(value.__code__), self._all((*cells, value.__defaults__, value.__kwdefaults__))
        if isinstance(value, types.MethodType):
            return self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, functools.partial):
            return kind, self._all((value.func, value.args, value.keywords))
        fields = fields_of(value)
        return (kind, tuple((name, self.of(held)) for name, held in fields.items())) if fields else Same(value)

    def _all(self, values: Any) -> Hashable:
        return tuple(map(self.of, values))

    def _own(self, value: Any) -> Hashable:
        """What an object of a user's subclass has beside its items."""
        own = getattr(value, "__dict__", None)
        return self._all(tuple(own.items())) if own else None


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None
