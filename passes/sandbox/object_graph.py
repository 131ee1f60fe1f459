"""The object graph of a model: every object, container and tensor that can be reached from it, each noted once."""

import collections
import random
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..graph.walk import walk

_DEPTH = 6  # how far plain objects are followed, e.g. a configuration in a configuration; submodules do not count
_CONTAINERS = (list, dict, set, collections.deque)
GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)
_CLOSED = (
    torch.Tensor, np.ndarray, *GENERATORS, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType,
    torch.jit.ScriptFunction, str, bytes,
)  # fmt: skip


@dataclass
class ObjectGraph:
    """What can be reached from a model, by id."""

    objects: dict[int, Any] = field(default_factory=dict)  # have attributes
    containers: dict[int, Any] = field(default_factory=dict)  # that can change
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    generators: dict[int, Any] = field(default_factory=dict)  # of random numbers, the model's own

    @classmethod
    def of(cls, model: nn.Module) -> "ObjectGraph":
        """Everything that can be reached from `model`, through submodules as far as they go."""
        graph = cls()
        for _, _, value in walk(model, graph._open, _DEPTH, anew=nn.Module):
            if type(value) is dict or isinstance(value, nn.Module):  # nearly all values: noted where they are opened
                continue
            if isinstance(value, torch.Tensor):
                graph.tensors[id(value)] = value
            elif isinstance(value, np.ndarray):
                graph.arrays[id(value)] = value
            elif isinstance(value, random.SystemRandom) or value is torch.default_generator:
                continue  # the one has no state, the other is the process's
            elif isinstance(value, GENERATORS):
                graph.generators[id(value)] = value
        return graph

    def places(self, tensors: Iterable[torch.Tensor]) -> Iterator[tuple[Any, Any, Any]]:
        """Where dicts, lists and attributes hold some tensors, themselves or in a tuple: table, key, and the value."""
        wanted = set(map(id, tensors))
        for table in (*self.containers.values(), *map(vars, self.objects.values())) if wanted else ():
            if not isinstance(table, dict | list):
                continue
            for key, value in list(table.items() if isinstance(table, dict) else enumerate(table)):
                if _holds(value, wanted):
                    yield table, key, value

    def _open(self, value: Any) -> Any:
        """Note a container or an object, and give what it holds."""
        if isinstance(value, _CONTAINERS):
            self.containers[id(value)] = value
            return value
        if isinstance(value, tuple):
            return value
        if isinstance(value, _CLOSED) or not hasattr(value, "__dict__"):
            return None
        self.objects[id(value)] = value
        if isinstance(value, torch.jit.ScriptModule):  # its tensors live in C++
            return [*vars(value).values(), *value.parameters(), *value.buffers()]
        return vars(value)


def _holds(value: Any, wanted: set[int]) -> bool:
    return id(value) in wanted or (type(value) is tuple and any(_holds(v, wanted) for v in value))
