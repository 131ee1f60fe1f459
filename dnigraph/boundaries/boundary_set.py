"""The boundaries of one model: here they are made and kept."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..heads.conditions import Context
from ..heads.seen import EMPTY, Inputs, Outputs, Seen
from ..passes.errors import bullets
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.plan.plan import Crossing, Plan
from .boundary import Boundary, BoundaryError, Siblings, no_label
from .head_watch import HeadWatch
from .replay import Replay
from .surroundings import Surroundings

LATE = "late"  # a buffer that marks boundaries which the example did not need

Meta = Mapping[str, Any]
# Of a crossing, its node's meta, and what surrounds it in the model.
MakeBoundary = Callable[[Crossing, Meta, Context, Surroundings], Boundary]


class BoundarySet:
    """The boundaries on a model's crossings. `modules` has them by the keys under which graphs call them."""

    def __init__(self, make: MakeBoundary, context: Context):
        self.make, self.context = make, context
        self.modules, self._watch = nn.ModuleDict(), HeadWatch()
        self.needs = frozenset[str]()  # of all boundaries
        self.looks_around = False  # whether one looks at the model's inputs, or at the error at its outputs
        self._coming: dict[str, Boundary] = {}  # while others are made
        self.waiting: dict[str, dict[str, Any]] = {}  # key -> loaded state of a boundary that no call has needed yet

    @property
    def by_name(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        boundaries = {}
        for boundary in self.modules._modules.values():
            if isinstance(boundary, Boundary):
                boundaries[boundary.spec.name] = boundary
        return boundaries

    def add(
        self, crossings: Iterable[Crossing], metas: Mapping[str, Meta], training: bool, around: Surroundings,
        late: bool = False,
    ) -> list[Boundary]:  # fmt: skip
        """Make a boundary for each crossing that carries a gradient and has none yet. Returns the new ones.

        Args:
            metas: the meta of the crossings' nodes, by the nodes' names.
            around: what surrounds the crossings.
            late: a later call needs them, not the example: a fresh program does not have them yet.

        Heads start at random. The random state is put back, so that no other number of the program changes.

        Raises:
            BoundaryError: some do not fit their crossings, or need what there is not here; all of them are listed.
        """
        known, new, misfits = self.by_name, dict[str, Boundary](), dict[str, BoundaryError]()  # by what they say
        self._coming, self.context.siblings = {}, self.siblings
        with torch.random.fork_rng(devices=[]):
            for crossing in crossings:
                if crossing.gradient and crossing.name not in known:
                    try:
                        boundary = self.make(crossing, metas[crossing.node], self.context, around)
                    except BoundaryError as error:
                        misfits.setdefault(str(error), error)
                        continue
                    new[boundary_key(crossing)] = self._coming[crossing.name] = boundary.train(training)
        self._coming = {}
        if misfits:
            raise _joined(misfits)
        for key, boundary in new.items():
            if late and boundary.state_dict():
                boundary.register_buffer(LATE, torch.ones((), dtype=torch.bool))
            if key in self.waiting:
                boundary.load_state_dict(self.waiting.pop(key))
        self.modules._modules.update(new)  # none of them where one cannot be made
        self._note_needs()
        return list(new.values())

    def siblings(self) -> dict[str, Boundary]:
        """All boundaries, and those that are being made."""
        return {**self.by_name, **self._coming}

    def _note_needs(self) -> None:
        self.needs = frozenset().union(*[boundary.needs for boundary in self.by_name.values()])
        self.looks_around = not self.needs.isdisjoint(("inputs", "error"))

    def seen(self, label: Any, inputs: Sequence[str], values: Sequence[Any]) -> Seen:
        """What the boundaries see of a step.

        Args:
            inputs, values: the names of the model's inputs, and those.
        """
        if not self.looks_around:
            return Seen(label)
        given = Inputs.of(inputs, values) if "inputs" in self.needs else EMPTY
        return Seen(label, given, Outputs() if "error" in self.needs else None)

    def refuse_blind(self) -> None:
        """Refuse a step without a label, where a boundary looks at it.

        Raises:
            ConditionError: it names all that do.
        """
        if "label" in self.needs:
            raise no_label(self.by_name)

    def look(self, model: nn.Module) -> None:
        """See whether the heads learn, at the beginning of a call of the model in train mode."""
        self._watch.look(model, self.modules._modules)

    def leave_out(self) -> None:
        """Under a transform of `torch.func` the model runs without boundaries, as it may where they do nothing to it.

        Raises:
            BoundaryError: one hands down another gradient than the true one.
        """
        for boundary in self.by_name.values():
            boundary.leave_out()

    def state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add the state of all boundaries to `destination`, also of those that wait for a call that needs them."""
        self.modules.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        for key, state in self.waiting.items():
            destination |= {f"{prefix}{key}.{name}": value for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool, assign: bool) -> Any:
        """Load what `state_dict` gave. States of boundaries that a later call made wait here for such a call."""
        here, waiting = dict(state), dict[str, dict[str, Any]]()
        for key in {name.rpartition(".")[0] for name in state if name.endswith(f".{LATE}")} - self.modules.keys():
            waiting[key] = {n.removeprefix(f"{key}."): here.pop(n) for n in state if n.startswith(f"{key}.")}
        for key, boundary in self.modules.items():
            if LATE in boundary._buffers and not any(name.startswith(f"{key}.") for name in state):
                here |= {f"{key}.{name}": value for name, value in boundary.state_dict().items()}  # the file is older
        result = self.modules.load_state_dict(here, strict=strict, assign=assign)
        self.waiting = waiting
        return result

    def misfits(self, state: Mapping[str, Any]) -> list[str]:
        """One line for each entry of a state that is missing, strange or of another shape; heads of late ways aside."""
        own, lines, varying = self.modules.state_dict(), [], self.varying()
        late = {n.rpartition(".")[0] for side in (own, state) for n in side if n.endswith(f".{LATE}")}
        for name in sorted((own.keys() | state.keys()) - varying):
            if name.partition(".")[0] in late:
                continue
            here, there = (_size(side[name]) if name in side else "missing" for side in (own, state))
            if here != there:
                lines.append(f"{name}: {here} here, {there} in the state")
        return lines

    def varying(self) -> set[str]:
        """The names of entries that a state may have or lack, in any size: batches that heads remember."""
        kept = [(path, module) for path, module in self.modules.named_modules() if isinstance(module, Replay)]
        return {f"{path}.{name}" for path, module in kept for name in module.entries}

    def describe(self, plan: Plan) -> Plan:
        """The plan with the boundary and the head of each crossing."""
        boundaries, crossings = self.by_name, []
        for crossing in plan.crossings:
            boundary = boundaries.get(crossing.name) if crossing.gradient else None
            if boundary is not None:
                head, count = boundary.head_name, boundary.head_parameters
                crossing = replace(crossing, boundary=boundary.title, head=head, head_parameters=count)
            crossings.append(crossing)
        return replace(plan, crossings=tuple(crossings))

    def copy(self, memo: dict[int, Any]) -> "BoundarySet":
        """A set with boundaries and a label context of its own, for a deep copy of the model."""
        result = BoundarySet(self.make, copy.deepcopy(self.context, memo))
        result.modules, result.waiting = copy.deepcopy(self.modules, memo), copy.deepcopy(self.waiting, memo)
        for boundary in result.by_name.values():
            boundary.siblings = Siblings(result.siblings)
        result.needs, result.looks_around = self.needs, self.looks_around
        return result


def _joined(misfits: Mapping[str, BoundaryError]) -> BoundaryError:
    """One error for all, with the first as its cause."""
    first = next(iter(misfits.values()))
    if len(misfits) == 1:
        return first
    joined = BoundaryError(f"boundaries do not fit their crossings:{bullets(misfits)}")
    joined.__cause__ = first.__cause__ or first
    return joined


def _size(entry: Any) -> str:
    """The shape of an entry of a state dict, or what else it is: a count of steps is a plain number."""
    return str(list(entry.shape)) if isinstance(entry, Tensor) else f"of type {type(entry).__name__}"
