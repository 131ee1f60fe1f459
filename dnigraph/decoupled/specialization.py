"""One captured path of a model, cut into parts and ready to run."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ..passes.capture.annotate import annotate
from ..passes.capture.profile import node_seconds
from ..passes.cuts.resolve import resolve
from ..passes.cuts.specs import Cuts, wants_time
from ..passes.graph.captured_graph import CapturedGraph
from ..passes.graph.guards import Trust, trust
from ..passes.parts.boundary_nodes import insert_boundaries
from ..passes.parts.split import Split, split
from ..passes.plan.partition import partition, to_plan
from ..passes.plan.plan import Plan
from .assemble import Assembly


@dataclass
class Cutting:
    """A captured graph with its plan and the graphs of its parts: everything but the boundaries."""

    captured: CapturedGraph
    plan: Plan
    split: Split
    nodes: dict[str, fx.Node]  # of the captured graph, by name
    trust: Trust
    again: Cuts = ()  # the cuts for a further graph of the model


def cut(
    captured: CapturedGraph, model: nn.Module, cuts: Cuts, inputs: list[Any] | None, strict: bool = True
) -> Cutting:
    """Cut a captured graph at the user's cuts.

    Args:
        inputs: the graph's inputs of one call; without them the plan has no shapes.
        strict: cuts that do not fit are errors.

    Raises:
        CutError: cuts do not fit the model.
    """
    if inputs is not None:
        annotate(captured, model, inputs)
        if wants_time(cuts):
            node_seconds(captured, model, inputs)
    modules = [path for path, _ in model.named_modules() if path]
    resolved = resolve(captured.graph, cuts, modules, strict)
    parts = partition(captured.graph, resolved.edges)
    plan = to_plan(captured.graph, parts, type(model).__name__, captured.rung)
    plan = replace(plan, notes=resolved.notes + plan.notes)
    nodes = {node.name: node for node in captured.graph.nodes}
    return Cutting(captured, plan, split(captured.graph, parts), nodes, trust(captured.graph), resolved.again)


@dataclass
class Variant:
    """A cutting with its modules. `run` computes the flat results of the model from its flat inputs."""

    cutting: Cutting
    assembly: Assembly
    parts: dict[str, fx.GraphModule]
    top: fx.GraphModule
    proven: set[Any] = field(default_factory=set)  # input sizes at which all guards held
    silent: set[int] = field(default_factory=set)  # outputs that the loss was seen not to look at

    @property
    def plan(self) -> Plan:
        """The plan that the parts follow."""
        return self.cutting.plan

    @property
    def captured(self) -> CapturedGraph:
        """The captured graph that was cut."""
        return self.cutting.captured

    def run(self, inputs: list[Any]) -> Any:
        """The model's live results, through all parts and boundaries."""
        return self.top.forward(*inputs)


class Through(nn.Module):
    """Stands where there is no boundary: passes the value on."""

    def forward(self, value: Any, consumers: int = 1) -> Any:
        """The value, once for each consumer."""
        return value if consumers == 1 else (value,) * consumers


def assemble(cutting: Cutting, model: nn.Module, boundaries: nn.ModuleDict) -> Variant:
    """Make the modules of a cutting. `boundaries` holds, by key, those that the top graph calls."""
    assembly = Assembly(model, cutting.captured.constants)
    parts = {name: assembly.module(graph, name) for name, graph in cutting.split.graphs.items()}
    graph = insert_boundaries(cutting.split.top, cutting.plan)
    top = fx.GraphModule(nn.Module(), fx.Graph(), class_name="Decoupled")
    holder = nn.Module()
    called = [str(n.target).removeprefix("dni.") for n in graph.nodes if str(n.target).startswith("dni.")]
    holder._modules = {key: boundaries[key] if key in boundaries else Through() for key in called}
    top.graph = graph  # first: it would have the code of all modules below written again
    top._modules |= {**parts, "dni": holder}
    return Variant(cutting, assembly, parts, top)


def sizes(inputs: list[Any]) -> tuple[Any, ...]:
    """The sizes of the inputs, to remember at which ones the guards held."""
    return tuple(v.shape if isinstance(v, torch.Tensor) else v for v in inputs)
