"""A decoupled model that runs whole: in each call, hooks put boundaries on the values between its modules."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..boundaries import Boundary
from ..boundaries.boundary_set import BoundarySet, MakeBoundary
from ..boundaries.surroundings import EVERYTHING, Surroundings
from ..passes.capture.annotate import batch_lengths
from ..passes.capture.module_graph import RUNG, events, heard, parameters
from ..passes.capture.module_hooks import Site, Watch
from ..passes.cuts.specs import Cuts, cut_graph
from ..passes.graph.facts import batch_dim
from ..passes.graph.own_names import GraphModule
from ..passes.graph.pytrees import flatten
from ..passes.plan.plan import LEAK, Crossing, Note, Plan
from ..passes.sandbox.journal import all_or_nothing, undone
from .module import DecoupledModule, warn_late

COST = (
    "on hooks: the model runs whole, so it is trained drop-in and its parts cannot be run, placed or compiled by "
    "themselves; a step in which a cut module does not run is not cut there"
)


class HooksWarning(UserWarning):
    """A true gradient leaks around a cut. Only a graph of the model could be cut there."""


def hooked_plan(graph: fx.Graph, model: nn.Module, cuts: Cuts, strict: bool = True) -> Plan:
    """The plan for a graph that `observe` made. Values that go around the cuts keep true gradients; a note tells which.

    Args:
        strict: cuts that do not fit are errors.

    Raises:
        CutError: cuts do not fit the model.
    """
    plan, resolved = cut_graph(graph, cuts, model, RUNG, strict)
    plan = replace(plan, crossings=tuple(_named(graph, c) for c in plan.crossings))
    crossings = tuple(c if _can_be_cut(graph, plan, c) else replace(c, gradient=False) for c in plan.crossings)
    leaking = [c for c, kept in zip(plan.crossings, crossings, strict=True) if c.gradient and not kept.gradient]
    leaks = {crossing.node for crossing in leaking}
    own = plan.notes[len(resolved.notes) :]
    notes = [n for n in own if not (isinstance(n, Note) and n.crossing in leaks)]
    plan = replace(plan, crossings=crossings, notes=(*resolved.notes, COST, *notes))
    return replace(plan, notes=(*plan.notes, *_leaks(graph, plan, leaking)))


def _named(graph: fx.Graph, crossing: Crossing) -> Crossing:
    """The crossing; at a module's input under the name "<module>_in", else under that of the module that made it."""
    site = next((n.meta.get("site") for n in graph.nodes if n.name == crossing.node), None)
    return replace(crossing, name=_name(site)) if site is not None and site.side == "enter" else crossing


def _name(site: Site) -> str:
    return site.key + ("_in" if site.side == "enter" else "") + (f"_{site.leaf}" if site.leaf else "")


def _can_be_cut(graph: fx.Graph, plan: Plan, crossing: Crossing) -> bool:
    """Whether a boundary may replace the value for all its readers: none of them is in the part that makes it."""
    if crossing.asked:
        return crossing.gradient
    producer = next(set(part.nodes) for part in plan.parts if part.name == crossing.producer)
    node = next(n for n in graph.nodes if n.name == crossing.node)
    return crossing.gradient and "site" in node.meta and not any(user.name in producer for user in node.users)


def _leaks(graph: fx.Graph, plan: Plan, leaking: list[Crossing]) -> list[Note]:
    """A note on the parameters below the cuts that get a gradient through these values, if there are any."""
    nodes = {node.name: node for node in graph.nodes}
    sites = {nodes[c.node] for c in plan.crossings if c.gradient}
    past = sorted(parameters(heard([nodes[c.node] for c in leaking], sites)))
    if not past:
        return []
    around = ", ".join(c.name for c in leaking[:3]) + (", ..." if len(leaking) > 3 else "")
    some = ", ".join(past[:3]) + (", ..." if len(past) > 3 else "")
    leak = f"true gradients leak around the cuts through {around} to {len(past)} parameters below them: {some}"
    return [Note(leak, LEAK)]


class HookedCalls:
    """Calls of a model that runs as it is, with boundaries between its modules.

    Args:
        graph: what `observe` made of one call.
        plan: what `hooked_plan` made of that.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, plan: Plan, boundary_set: BoundarySet, late: bool = False):
        self.model, self.boundary_set = model, boundary_set
        nodes = {node.name: node for node in graph.nodes}
        crossings = [crossing for crossing in plan.crossings if crossing.gradient]
        self._seen = {node.meta["site"] for node in events(graph)}  # in the example
        self._sites: dict[Site, str] = {nodes[c.node].meta["site"]: c.name for c in crossings}
        metas = {name: node.meta for name, node in nodes.items()}
        self._around = Surroundings(graph, plan, EVERYTHING - {"after"})
        new = boundary_set.add(crossings, metas, model.training, self._around, late)
        if late:
            warn_late(new)
        self.plan = boundary_set.describe(plan)

    @all_or_nothing
    def __call__(self, args: Any, kwargs: Any, stand_ins: Mapping[str, Boundary]) -> Any:
        """Run the model. `stand_ins`: what is called in place of boundaries, by their names."""
        if not (self.model.training and torch.is_grad_enabled() and self._sites):
            return self.model(*args, **kwargs)  # boundaries would do nothing
        batch = batch_lengths(flatten((args, kwargs))[0])
        places = {(site.path, site.side) for site in self._sites}

        def passed(site: Site, value: Tensor) -> Tensor:
            name = self._sites.get(site)
            if name is None and site in self._seen:
                return value  # not cut here
            name = name or self._further(site, value, batch)
            boundary = stand_ins.get(name) or self.boundary_set.by_name[name]
            # Hooks of our own keep the head's saved tensors out of activation checkpointing, which would recompute and
            # compare them. Detached, since a saved result would keep its own graph alive.
            with torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda saved: saved):
                result: Tensor = boundary(value)
            return result

        with Watch(self.model, passed, places).attached():
            return self.model(*args, **kwargs)

    def _further(self, site: Site, value: Tensor, batch: tuple[int, int]) -> str:
        """A boundary for a further call of a cut module, or a further tensor of it, which the example did not have."""
        name = self._sites[site] = _name(site)
        if name not in self.boundary_set.by_name:
            crossing = Crossing(name, name, "", (), tuple(value.shape), str(value.dtype), gradient=True)
            meta = {"dtype": value.dtype, "device": value.device, "batch_dim": batch_dim(tuple(value.shape), *batch)}
            new = self.boundary_set.add([crossing], {name: meta}, self.model.training, self._around, late=True)
            warn_late(new)
        return name

    def copy(self, model: nn.Module, boundary_set: BoundarySet) -> "HookedCalls":
        """The same for a deep copy of the model, with copies of the boundaries."""
        result = copy.copy(self)
        result.model, result.boundary_set, result._sites = model, boundary_set, dict(self._sites)
        return result


class HookedModule(DecoupledModule):
    """A decoupled model whose original runs as it is in each call, with boundaries between its modules."""

    def __init__(self, model: nn.Module, graph: fx.Graph, plan: Plan, make_boundary: MakeBoundary):
        super().__init__(model, make_boundary)
        self._observed, self._stand_ins = graph, dict[str, Boundary]()
        self._calls = HookedCalls(model, graph, plan, self.boundary_set)
        nodes = {node.name: node for node in graph.nodes}
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        results, cut = graph.output_node().all_input_nodes, {nodes[c.node] for c in plan.crossings if c.gradient}
        self._below = trained - parameters(heard(results, cut))
        shown = fx.Graph()  # for people who print it: the model is one node
        inputs = tuple([shown.placeholder(name) for name in self._signature.parameters])
        shown.output(shown.create_node("call_module", "original", inputs))
        self.graph = shown

    # ---- to look at

    @property
    def plan(self) -> Plan:
        """The plan, made of the example call; the same in both modes."""
        return self._calls.plan

    @property
    def parts(self) -> dict[str, GraphModule]:
        """None: the model runs whole."""
        return {}

    def parameters_of_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each part of the plan trains."""
        named = dict(self.original.named_parameters())
        nodes = {node.name: node for node in self._observed.nodes}
        return {
            part.name: [named[n] for node in part.nodes for n, _, _ in nodes[node].meta["parameters"]]
            for part in self.plan.parts
        }

    def parameters_below(self) -> set[str]:
        """The parameters whose gradients in the example call came from boundaries only."""
        return self._below

    # ---- to run

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: all calls run the model itself."""

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._calls(args, kwargs, self._stand_ins)

    def standing(self) -> dict[str, nn.Module]:
        """The modules that are called on the crossings at present, stand-ins included, by the crossings' names."""
        return {name: self._stand_ins.get(name, boundary) for name, boundary in self.boundaries.items()}

    @contextmanager
    def standing_in(self, make: Callable[[str], Boundary]) -> Iterator[None]:
        """Replace the boundaries inside the block by those that `make` makes of their keys."""
        with undone(partial(setattr, self, "_stand_ins", {})):
            self._stand_ins = {name: make(name.replace(".", "_")).train(self.training) for name in self.boundaries}
            yield

    # ---- copies

    def __deepcopy__(self, memo: dict[int, Any]) -> "HookedModule":
        """A copy with weights, heads and label context of its own, on the same plan."""
        model = copy.deepcopy(self.original, memo)
        result = memo[id(self)] = HookedModule(model, self._observed, self.plan, self.boundary_set.make)
        result._copy_boundaries(self, memo)
        result._calls = self._calls.copy(model, result.boundary_set)
        result.train(self.training)
        return result
