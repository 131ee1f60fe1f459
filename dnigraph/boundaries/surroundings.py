"""What a crossing has around it in the model: what its boundary may ask for before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ..heads.seen import NEEDS, Inputs
from ..heads.spec import CrossingSpec
from ..passes.errors import nearest
from ..passes.plan.plan import Crossing, Plan
from .boundary import Boundary
from .fresh_layers import Find, LaterLayers

# What can be done where a boundary stands that needs more than there is.
_WHOLE = "cut one whole model, dm = dg.decouple(model, ...), in place of agents that are wired by hand"
_WAYS = {"after": "cut the model on a graph, dg.decouple(model, ..., capture='record'), not on hooks and not by hand"}


EVERYTHING = frozenset(NEEDS)


@dataclass(frozen=True)
class Surroundings:
    """Of one captured graph that was cut. The empty one: of a link that a user wired."""

    graph: fx.Graph | None = None
    plan: Plan | None = None
    offers: frozenset[str] = frozenset({"label", "inputs"})
    inputs: Mapping[str, Any] | None = None  # of the model, in this call; None: those of the graph
    find: Find | None = None  # finds the model's own of a target of the graph, for copies of its layers

    def describe(self, spec: CrossingSpec, crossing: Crossing) -> CrossingSpec:
        """The crossing as its boundary's factory sees it."""
        inputs = Inputs({n: _bare(t) for n, t in (self.inputs or {}).items() if isinstance(t, Tensor)})
        if self.graph is None or self.plan is None:
            return replace(spec, offers=self.offers, inputs=inputs, wired=True)
        makers = {c.node: c for c in self.plan.crossings if c.gradient}
        parts = {part.name: part for part in self.plan.parts}
        below = parts[crossing.producer].inputs if crossing.producer in parts else ()
        above = [node for name in crossing.consumers for node in parts[name].outputs]
        return replace(
            spec,
            module=_module(self.graph, crossing),
            below=tuple(makers[node].name for node in below if node in makers),
            above=tuple(makers[node].name for node in dict.fromkeys(above) if node in makers),
            inputs=_inputs(self.graph, crossing.node) if self.inputs is None else inputs,
            after=LaterLayers(self.graph, crossing.node, self.find, spec.line) if self.find is not None else None,
            offers=self.offers,
        )


def _module(graph: fx.Graph, crossing: Crossing) -> str | None:
    """The path of the innermost module whose call makes the value."""
    node = next((node for node in graph.nodes if node.name == crossing.node), None)
    stack = {} if node is None else node.meta.get("nn_module_stack") or {}
    return next((path for path, _ in reversed(stack.values())), None)


def _inputs(graph: fx.Graph, value: str) -> Inputs:
    """The graph's inputs that a value is computed of, without data."""
    found = {node for node in graph.nodes if node.name == value}
    for node in reversed(graph.nodes):
        if not found.isdisjoint(node.users):
            found.add(node)
    placeholders = [node for node in graph.find_nodes(op="placeholder") if node in found and "shape" in node.meta]
    return Inputs({n.name: torch.empty(n.meta["shape"], dtype=n.meta["dtype"], device="meta") for n in placeholders})


def _bare(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def unmet(boundary: Boundary) -> str | None:
    """What a boundary needs and does not get where it stands, with the way out, or that there is no such need."""
    return lacking(boundary.spec, boundary.kind, set(boundary.needs))


def lacking(spec: CrossingSpec, kind: str, needs: set[str]) -> str | None:
    """The same of a boundary that is to be made."""
    name = f"boundary '{spec.name}' ({kind})"
    if strange := sorted(needs - NEEDS.keys()):
        listed = ", ".join(f"{need!r}{nearest(need, NEEDS)}" for need in strange)
        return f"{name} declares needs that there are not: {listed}; there are {', '.join(NEEDS)}"
    if missing := sorted(needs - spec.offers):
        listed = "; ".join(f"{NEEDS[need]} (needs '{need}'): {_WAYS.get(need, _WHOLE)}" for need in missing)
        return f"{name} needs what cannot be had here: {listed}"
    return None
