"""All that hangs on a model: every object, container and tensor that can be reached from it, each noted once."""

import collections
import random
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

_DEPTH = 6  # how far plain objects are followed; submodules do not count
_ATOMS = {bool, int, float, str, bytes, type(None)}
_CONTAINERS = (list, dict, set, collections.deque)
_GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)
_CLOSED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, torch.jit.ScriptFunction, str, bytes)


@dataclass
class Holdings:
    """What can be reached from a model."""

    objects: dict[int, Any] = field(default_factory=dict)  # have attributes
    containers: dict[int, Any] = field(default_factory=dict)
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    generators: dict[int, Any] = field(default_factory=dict)  # of random numbers, the model's own

    @classmethod
    def of(cls, model: nn.Module) -> "Holdings":
        """Everything that can be reached from `model`, through submodules as far as they go."""
        found = cls()
        found._visit(model, _DEPTH)
        return found

    def places(self, tensors: Iterable[torch.Tensor]) -> list[tuple[Any, Any, Any]]:
        """Where dicts, lists and attributes hold some tensors, themselves or in a tuple: holder, key, and the value."""
        wanted = {id(t) for t in tensors}
        tables = [c for c in self.containers.values() if isinstance(c, dict | list)]
        tables += [vars(o) for o in self.objects.values()]
        return [(c, k, v) for c in tables if c for k, v in _pairs(c) if _holds(v, wanted)] if wanted else []

    def _visit(self, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            self.tensors[id(value)] = value
        elif isinstance(value, np.ndarray):
            self.arrays[id(value)] = value
        elif isinstance(value, _GENERATORS):
            self._note_generator(value)
        elif depth and isinstance(value, (*_CONTAINERS, tuple)):
            self._open_container(value, depth)
        elif depth and hasattr(value, "__dict__") and not isinstance(value, _CLOSED) and id(value) not in self.objects:
            self.objects[id(value)] = value
            self._visit_all(_held(value), _DEPTH if isinstance(value, nn.Module) else depth - 1)

    def _note_generator(self, value: Any) -> None:
        if value is not torch.default_generator and not isinstance(value, random.SystemRandom):
            self.generators[id(value)] = value

    def _open_container(self, value: Any, depth: int) -> None:
        if id(value) in self.containers:
            return
        if not isinstance(value, tuple):
            self.containers[id(value)] = value
        if value:
            self._visit_all(_items(value), depth - 1)

    def _visit_all(self, values: Iterable[Any], depth: int) -> None:
        for value in values:
            if type(value) not in _ATOMS:  # nearly all that hangs on a module
                self._visit(value, depth)


def _items(value: Any) -> Iterator[Any]:
    return iter(list(value.values()) if isinstance(value, dict) else list(value))


def _held(value: Any) -> Iterator[Any]:
    yield from list(vars(value).values())
    if isinstance(value, torch.jit.ScriptModule):  # its tensors live in C++
        yield from value.parameters()
        yield from value.buffers()


def _pairs(table: Any) -> Iterator[tuple[Any, Any]]:
    return iter(list(table.items() if isinstance(table, dict) else enumerate(table)))


def _holds(value: Any, wanted: set[int]) -> bool:
    return id(value) in wanted or (type(value) is tuple and any(_holds(v, wanted) for v in value))
