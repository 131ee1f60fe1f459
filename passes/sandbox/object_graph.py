"""The object graph of a model: every object, container and tensor that can be reached from it, each noted once."""

import collections
import random
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ..graph.walk import filled_slots, slots_of, walk
from .outside import Variable, variables

_DEPTH = 6  # how far plain objects are followed, e.g. a configuration in a configuration; submodules do not count
_NEAR = 3  # the same from variables outside of the model
_CONTAINERS = (list, dict, set, collections.deque)
_OPENED = frozenset((dict, collections.OrderedDict, list, tuple, set))
GENERATORS = (random.Random, np.random.RandomState, np.random.Generator, torch.Generator)


class Hidden:
    """Holds what no snapshot sees, nor puts back."""


_CLOSED = (
    Hidden, torch.Tensor, np.ndarray, *GENERATORS, type, types.ModuleType, types.FunctionType,
    types.BuiltinFunctionType, torch.jit.ScriptFunction, str, bytes,
)  # fmt: skip


@dataclass
class ObjectGraph:
    """What can be reached from a model, by id."""

    objects: dict[int, Any] = field(default_factory=dict)  # have attributes
    slotted: dict[int, Any] = field(default_factory=dict)  # have slots; they may have attributes, too
    containers: dict[int, Any] = field(default_factory=dict)  # that can change
    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    arrays: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    generators: dict[int, Any] = field(default_factory=dict)  # of random numbers, the model's own
    outside: set[int] = field(default_factory=set)  # those of the above that do not hang on the model
    variables: list[Variable] = field(default_factory=list)  # outside of the model, which its code reads

    @classmethod
    def of(cls, model: nn.Module, arguments: Sequence[Any] = ()) -> "ObjectGraph":
        """Everything that can be reached from `model`, through submodules as far as they go; and, less far, from the
        variables outside that its code reads, and from arguments of a call.
        """
        graph, opened = cls(), dict[int, int]()
        graph._note(walk(model, graph._open, _DEPTH, anew=nn.Module, opened=opened))
        graph.variables = variables(model)
        if graph.variables or arguments:
            own = {*graph.objects, *graph.slotted, *graph.containers}
            for value in (*[variable.value for variable in graph.variables], *arguments):
                if not isinstance(value, torch.Tensor):
                    graph._note(walk(value, graph._open, _NEAR, opened=opened))
            graph.outside = {*graph.objects, *graph.slotted, *graph.containers} - own
        return graph

    @classmethod
    def below(cls, values: Sequence[Any]) -> "ObjectGraph":
        """Everything that can be reached from some values, however far."""
        graph = cls()
        graph._note(walk(values, graph._open, 1, anew=object))
        return graph

    def _note(self, found: Iterable[tuple[Any, Any, Any]]) -> None:
        """Note the tensors, arrays and generators among what a walk finds."""
        graph = self
        for _, _, value in found:
            if type(value) in _OPENED or isinstance(value, nn.Module):  # nearly all values: noted where they are opened
                continue
            if isinstance(value, torch.Tensor):
                graph.tensors[id(value)] = value
            elif isinstance(value, np.ndarray):
                graph.arrays[id(value)] = value
            elif isinstance(value, random.SystemRandom) or value is torch.default_generator:
                continue  # the one has no state, the other is the process's
            elif isinstance(value, GENERATORS):
                graph.generators[id(value)] = value

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
        if isinstance(value, _CLOSED):
            return None
        held = getattr(value, "__dict__", None)
        attributes = held if isinstance(held, dict) else None  # `list[int]` shows those of its class
        if slots_of(type(value)):
            self.slotted[id(value)] = value
            if attributes is None:
                return filled_slots(value)
            self.objects[id(value)] = value
            return [*filled_slots(value).values(), *attributes.values()]
        if attributes is None:
            return None
        self.objects[id(value)] = value
        if isinstance(value, torch.jit.ScriptModule):  # its tensors live in C++
            return [*vars(value).values(), *value.parameters(), *value.buffers()]
        return vars(value)


def _holds(value: Any, wanted: set[int]) -> bool:
    return id(value) in wanted or (type(value) is tuple and any(_holds(v, wanted) for v in value))
