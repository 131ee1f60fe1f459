"""A captured model: a flat graph, what it refers to, and how its result is built; and what every rung promises."""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from .nodes import OURS, PACKAGE, Call, NodeMeta, guard
from .pytrees import HOLE, Tree

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
        self.__dict__["_model"], self.__dict__["_held"] = model, dict(constants)

    def __getattr__(self, name: str) -> Any:
        if name == SHELTER:
            return self
        held = self.__dict__["_held"]
        return held[name] if name in held else getattr(self.__dict__["_model"], name)


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


def misfits(captured: CapturedGraph, model: nn.Module, tensors: int | None = None) -> list[str]:
    """Where a captured graph breaks what all passes rely on; nothing: it keeps it.

        x ─► get_attr, call_module, call_function, call_method, guard ... ─► output((value, value, ...))

    Args:
        tensors: how many tensors are among the inputs; `None`: the rung takes the arguments whole.
    """
    nodes = list(captured.graph.nodes)
    count = sum(node.op == "placeholder" for node in nodes)
    results = nodes[-1].args[0] if nodes and nodes[-1].op == "output" else None
    wrong = []
    if tensors not in (None, count):
        wrong.append(f"it has {count} placeholders for {tensors} tensors among the inputs")
    if not isinstance(results, tuple) or not all(isinstance(value, fx.Node) for value in results):
        wrong.append("its last node is no output of a flat tuple of nodes")
    elif len(results) != (holes := sum(constant is HOLE for constant in captured.outputs.constants)):
        wrong.append(f"it returns {len(results)} values for {holes} holes in the model's result")
    return wrong + [f"{node.name}: {reason}" for node in nodes for reason in _node_misfits(node, captured, model)]


def _node_misfits(node: fx.Node, captured: CapturedGraph, model: nn.Module) -> Iterator[str]:
    if not node.name.isidentifier():
        yield "this is no name for a variable"
    if unknown := node.meta.keys() - NodeMeta.__annotations__.keys():
        yield f"its meta has unknown keys: {', '.join(sorted(unknown))}"
    if node.op in ("get_attr", "call_module"):
        found, kind = (
            _resolved(model, captured.constants, str(node.target)),
            "module" if node.op == "call_module" else "tensor",
        )
        if found is None or (kind == "module" and not isinstance(found, nn.Module)):
            yield f"the model has no {kind} '{node.target}', and there is no such constant"
    target: Any = node.target
    home = getattr(target, "__module__", None) or ""
    if node.op == "call_function" and home.startswith(PACKAGE) and not isinstance(target, Call) and target not in OURS:
        yield f"it calls {home}.{target.__name__}, which is not in `OURS`"
    if target is guard and (len(node.args) != 3 or node.users):
        yield "a guard has a value, what is expected and a place, and nobody reads it"
    for key, (path, kind) in node.meta.get("nn_module_stack", {}).items():
        if not re.fullmatch(re.escape(path) + r"(@([2-9]|[1-9]\d+))?", key):
            yield f"'{key}' is no name of a call of module '{path}': the first is '{path}', the second '{path}@2'"
        if type(_resolved(model, {}, path)) is not kind:
            yield f"the model has no {kind.__name__} '{path}', which is said to call it"


def _resolved(model: nn.Module, constants: Mapping[str, torch.Tensor], path: str) -> Any:
    try:
        return lookup(model, constants, path)
    except AttributeError:
        return None
