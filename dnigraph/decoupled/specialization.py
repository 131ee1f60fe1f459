"""One specialization of a model: the graph of one mode and one way through its code, cut into parts, ready to run."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..passes.capture.annotate import annotate
from ..passes.capture.profile import node_seconds
from ..passes.cuts.specs import Cuts, cut_graph, wants_time
from ..passes.graph.captured_graph import CapturedGraph, copy_graph, written
from ..passes.graph.guards import Trust, trust
from ..passes.graph.nodes import guard
from ..passes.graph.own_names import GraphModule
from ..passes.graph.pytrees import Tree
from ..passes.parts.boundary_nodes import insert_boundaries
from ..passes.parts.split import Split, split
from ..passes.plan.plan import DATA, Note, Plan
from .assemble import Assembly


@dataclass(eq=False)
class Specialization:
    """A captured graph with its plan and the graphs of its parts; once assembled, with the modules that run them."""

    captured: CapturedGraph
    plan: Plan
    split: Split
    trust: Trust
    again: Cuts  # the cuts for a further graph of the model
    assembly: Assembly = field(init=False)
    parts: dict[str, GraphModule] = field(init=False)
    top: GraphModule = field(init=False)
    arguments: Tree | None = None  # builds args and kwargs of the call that it was captured for
    proven: set[Any] = field(default_factory=set)  # input sizes at which all guards held
    silent: set[int] = field(default_factory=set)  # outputs that the loss was seen not to look at

    def run(self, inputs: list[Any]) -> Any:
        """The model's flat results, through all parts and boundaries."""
        return self.top.forward(*inputs)

    def build(self, results: Any) -> Any:
        """The model's results as it nests them, from the flat ones."""
        return self.captured.outputs.build(results)

    def copy(self, memo: dict[int, Any]) -> "Specialization":
        """The same graphs with the copies of a model's objects in place of those, not assembled."""
        graphs = {name: copy_graph(graph, memo) for name, graph in self.split.graphs.items()}
        pieces = replace(self.split, graphs=graphs, top=copy_graph(self.split.top, memo))
        return replace(self, captured=self.captured.copy(memo), split=pieces)


def specialize(
    captured: CapturedGraph, model: nn.Module, cuts: Cuts, inputs: list[Any], strict: bool = True
) -> Specialization:
    """Cut a captured graph at the user's cuts: everything but the modules.

    Args:
        inputs: the graph's inputs of one call.
        strict: cuts that do not fit are errors.

    Raises:
        CutError: cuts do not fit the model.
    """
    annotate(captured, model, inputs)
    captured = replace(captured, writes=tuple(sorted({*captured.writes, *written(captured.graph)})))
    if wants_time(cuts):
        node_seconds(captured, model, inputs)
    plan, resolved = cut_graph(captured.graph, cuts, model, captured.rung, strict)
    pieces, trusted = split(captured.graph, plan), trust(captured.graph)
    if trusted is Trust.NEVER:
        places = dict.fromkeys(str(n.args[2]) for n in captured.graph.find_nodes(op="call_function", target=guard))
        words = "Python looks at numbers in tensors, or at sizes that depend on them"
        way = "a call that takes another way through the code is captured anew"
        plan = replace(plan, notes=(*plan.notes, Note(f"{words} ({', '.join([*places][:3])}): {way}", DATA)))
    return Specialization(captured, plan, pieces, trusted, resolved.again)


class Through(nn.Module):
    """Stands where there is no boundary: passes the value on."""

    def forward(self, value: Any, consumers: int = 1) -> Any:
        """The value, once for each consumer."""
        return value if consumers == 1 else (value,) * consumers


def assemble(cut: Specialization, model: nn.Module, boundaries: nn.ModuleDict) -> Specialization:
    """A copy with modules of its own. `boundaries` holds, by key, those that the top graph calls."""
    result = replace(cut, proven=set(), silent=set())
    result.assembly = Assembly(model, cut.captured.constants)
    result.parts = {}
    for name, part in cut.split.graphs.items():
        result.parts[name] = result.assembly.module(part, name)
    graph = insert_boundaries(cut.split.top, cut.plan)
    holder = nn.Module()
    for node in graph.nodes:
        if node.op == "call_module" and node.target.startswith("dni."):
            key = node.target.removeprefix("dni.")
            holder._modules[key] = boundaries[key] if key in boundaries else Through()
    result.top = GraphModule(graph, "Decoupled")
    result.top._modules |= {**result.parts, "dni": holder}
    return result


def sizes(inputs: list[Any]) -> tuple[Any, ...]:
    """The sizes of the inputs, to remember at which ones the guards held."""
    return tuple([v.shape if isinstance(v, torch.Tensor) else v for v in inputs])
