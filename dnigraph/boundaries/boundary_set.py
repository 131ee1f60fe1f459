"""The boundaries of one model: here they are made and kept."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..heads.conditions import Context
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.plan.plan import Crossing, Plan
from .boundary import Boundary

Meta = Mapping[str, Any]
MakeBoundary = Callable[[Crossing, Meta, Context], Boundary]  # of a crossing and its node's meta


class BoundarySet:
    """The boundaries on a model's crossings. `modules` has them by the keys under which graphs call them."""

    def __init__(self, make: MakeBoundary, context: Context):
        self.make, self.context = make, context
        self.modules = nn.ModuleDict()

    @property
    def by_name(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        boundaries = {}
        for boundary in self.modules._modules.values():
            if isinstance(boundary, Boundary):
                boundaries[boundary.spec.name] = boundary
        return boundaries

    def add(self, crossings: Iterable[Crossing], metas: Mapping[str, Meta], training: bool) -> list[Boundary]:
        """Make a boundary for each crossing that carries a gradient and has none yet. Returns the new ones.

        Args:
            metas: the meta of the crossings' nodes, by the nodes' names.

        Heads start at random. The random state is put back, so that no other number of the program changes.
        """
        known, new = self.by_name, dict[str, Boundary]()
        with torch.random.fork_rng(devices=[]):
            for crossing in crossings:
                if crossing.gradient and crossing.name not in known:
                    boundary = self.make(crossing, metas[crossing.node], self.context)
                    new[boundary_key(crossing)] = boundary.train(training)
        self.modules._modules.update(new)  # none of them where one cannot be made
        return list(new.values())

    def describe(self, plan: Plan) -> Plan:
        """The plan with the boundary and the head of each crossing."""
        boundaries, crossings = self.by_name, []
        for crossing in plan.crossings:
            boundary = boundaries.get(crossing.name) if crossing.gradient else None
            if boundary is not None:
                head, count = boundary.head_name, boundary.head_parameters
                crossing = replace(crossing, boundary=boundary.kind, head=head, head_parameters=count)
            crossings.append(crossing)
        return replace(plan, crossings=tuple(crossings))

    def copy(self, memo: dict[int, Any]) -> "BoundarySet":
        """A set with boundaries and a label context of its own, for a deep copy of the model."""
        result = BoundarySet(self.make, copy.deepcopy(self.context, memo))
        result.modules = copy.deepcopy(self.modules, memo)
        return result
