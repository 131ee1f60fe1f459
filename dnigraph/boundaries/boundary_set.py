"""The boundaries of one model: the one place where they are made and kept."""

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

MakeBoundary = Callable[[Crossing, Mapping[str, Any], Context], Boundary]  # of a crossing and its node's meta


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

    def add(self, crossings: Iterable[tuple[Crossing, Mapping[str, Any]]], training: bool) -> list[Boundary]:
        """Make a boundary for each crossing, given with its node's meta, that has none yet; return the new ones.

        Heads start at random. The random state is put back, so that no other number of the program changes.
        """
        known, new = self.by_name, dict[str, Boundary]()
        with torch.random.fork_rng(devices=[]):
            for crossing, meta in crossings:
                if crossing.name not in known:
                    new[boundary_key(crossing)] = self.make(crossing, meta, self.context).train(training)
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
