"""A captured model: a flat graph, what it refers to, and how the result is built of what it returns."""

import copy
import functools
import operator
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from .nodes import Call, set_attribute
from .own_names import generated
from .pytrees import Tree


@dataclass(frozen=True)
class CapturedGraph:
    """One path through a model as a graph, as a rung of the ladder captured it.

    `graph` has one placeholder for each tensor among the inputs and returns the flat tuple of live results. Its
    `call_module` and `get_attr` targets are the model's own paths, or names in `constants`.
    """

    graph: fx.Graph
    rung: str
    outputs: Tree  # builds the model's result from the values that the graph returns
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sets: frozenset[tuple[str, str]] = frozenset()  # attributes that a forward sets: path of the module, name
    writes: tuple[str, ...] = ()  # tensors that a forward writes to in place, buffers aside
    spoils: tuple[int, ...] = ()  # inputs that it writes to, by their number

    def module(self, model: nn.Module) -> fx.GraphModule:
        """The graph as a module on the model's own parts, to run as a whole."""
        return generated(self.graph, lambda path: lookup(model, self.constants, path))

    def copy(self, memo: dict[int, Any]) -> "CapturedGraph":
        """The same graph for a deep copy of the model. `memo`: id -> copy of each object of the model."""
        constants = {name: memo.get(id(tensor), tensor) for name, tensor in self.constants.items()}
        return replace(self, graph=copy_graph(self.graph, memo), constants=constants)


def copy_graph(graph: fx.Graph, memo: dict[int, Any]) -> fx.Graph:
    """A copy of a graph in which each object that a node holds is replaced by its copy, where there is one."""
    result = copy.deepcopy(graph)
    for node in result.nodes:
        if node.op == "call_function":
            node.target = _replaced(node.target, memo)
        args, kwargs = _replaced(node.args, memo), _replaced(node.kwargs, memo)
        if args is not node.args or kwargs is not node.kwargs:
            node.args, node.kwargs = args, kwargs
    return result


def _replaced(value: Any, memo: dict[int, Any]) -> Any:
    """The value with copies of objects in it; itself where there are none."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        func, args, keywords = (_replaced(part, memo) for part in parts)
        if (func, args, keywords) == parts:
            return value
        result = functools.partial(func, *args, **keywords)
        result.__dict__.update(vars(value))
        return result
    if isinstance(value, types.MethodType):
        owner = _replaced(value.__self__, memo)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, Call):
        function, slots = _replaced(value.function, memo), _replaced(value.slots, memo)
        if function is value.function and slots is value.slots:
            return value
        return Call(function, value.mode, value.outside, slots)
    if isinstance(value, list | tuple):
        items = [_replaced(item, memo) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        found = {key: _replaced(item, memo) for key, item in value.items()}
        return value if all(map(operator.is_, found.values(), value.values())) else found
    return value


def written(graph: fx.Graph) -> set[str]:
    """The tensors of the model, and the constants, that an annotated graph writes to, whatever it writes."""
    storages = {storage for node in graph.nodes for storage in node.meta.get("writes", ())}
    for node in graph.nodes:
        if node.target is set_attribute and isinstance(node.args[0], fx.Node):
            storages.add(node.args[0].meta.get("storage"))
    return {
        str(node.target)
        for node in graph.nodes
        if node.op == "get_attr" and node.meta.get("storage") in storages - {None}
    }


class Owner(nn.Module):
    """Answers for a model's paths and for the constants of a captured graph; owns nothing itself."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]):
        super().__init__()
        self.__dict__["_model"], self.__dict__["_graph_constants"] = model, dict(constants)

    def __getattr__(self, name: str) -> Any:
        constants = self.__dict__["_graph_constants"]
        return constants[name] if name in constants else getattr(self.__dict__["_model"], name)


def lookup(model: nn.Module, constants: Mapping[str, torch.Tensor], path: str) -> Any:
    """What a `get_attr` or `call_module` target stands for."""
    return constants[path] if path in constants else attrgetter(path)(model)


def owned(captured: CapturedGraph, model: nn.Module, target: str) -> tuple[nn.Module | None, Any]:
    """What a target stands for, and the module of the model that holds it; None: it is a constant of the graph."""
    if target in captured.constants:
        return None, captured.constants[target]
    path, _, _ = target.rpartition(".")
    owner = attrgetter(path)(model) if path else model
    return owner if isinstance(owner, nn.Module) else None, attrgetter(target)(model)
