"""A captured model: a flat graph, what it refers to, and how the result is built of what it returns."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from .pytrees import Tree

SHELTER = "_sheltered"  # where the model's own things of such names stand in a generated module
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


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
        return fx.GraphModule(Owner(model, self.constants), sheltered(self.graph))


class Owner(nn.Module):
    """Answers for a model's paths and for the constants of a captured graph; owns nothing itself."""

    def __init__(self, model: nn.Module, constants: Mapping[str, torch.Tensor]):
        super().__init__()
        self.__dict__["_model"], self.__dict__["_graph_constants"] = model, dict(constants)

    def __getattr__(self, name: str) -> Any:
        if name == SHELTER:
            return self
        constants = self.__dict__["_graph_constants"]
        return constants[name] if name in constants else getattr(self.__dict__["_model"], name)


def lookup(model: nn.Module, constants: Mapping[str, torch.Tensor], path: str) -> Any:
    """What a `get_attr` or `call_module` target stands for."""
    return constants[path] if path in constants else attrgetter(path)(model)


def sheltered(graph: fx.Graph) -> fx.Graph:
    """The graph, or a copy that looks one level deeper for what a `GraphModule` cannot hold under its own name."""
    result = graph
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and str(node.target).partition(".")[0] in _TAKEN:
            result = copy.deepcopy(graph) if result is graph else result
            twin = next(n for n in result.nodes if n.name == node.name)
            twin.target = f"{SHELTER}.{node.target}"
    return result
