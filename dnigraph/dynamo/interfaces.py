"""The boundaries of one model in all the graphs that Dynamo makes of it."""

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ..boundaries import Boundary
from ..boundaries.boundary_set import BoundarySet
from ..boundaries.choices import Choices, warn_unconditioned
from ..heads.conditions import Context
from ..passes.cuts.names import IDLE, NEAR, UNKNOWN, UNKNOWN_NEAR
from ..passes.cuts.resolve import Resolved
from ..passes.cuts.specs import Cuts
from ..passes.errors import CutError
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.plan.plan import Crossing, Note, Plan

TELLING = (UNKNOWN, UNKNOWN_NEAR, IDLE, None, NEAR)  # kinds of misfits, the most telling last
CAPTURED = "{} that torch.compile captured of the model"
Key = tuple[Any, ...]


class UnmatchedWarning(UserWarning):
    """A cut stands in no graph, a graph stays whole, or nobody asked for the heads' parameters."""


@dataclass(frozen=True)
class Spot:
    """Where a graph was captured, and for which instance of its module: the same in each recompilation."""

    place: str
    instance: str


class Interfaces:
    """The boundaries of one compiled model. They outlive recompilations: what is called the same is the same.

    Args:
        rests: whether boundaries only pass on for now, as in eval mode.
    """

    def __init__(self, model: nn.Module, cuts: Cuts, choices: Choices, context: Context, rests: Callable[[], bool]):
        self._model, self._rests = weakref.ref(model), rests
        self._cuts, self._choices = cuts, choices
        self._set = BoundarySet(choices.make, context)
        self._names: dict[Key, str] = {}
        self._plans: dict[Spot, Plan] = {}
        self._again: dict[Spot, Cuts] = {}
        self._matched: set[str] = set()
        self._missed: dict[str, str] = {}
        self._whole: dict[str, str] = {}
        self._asked = self._warned = False

    # ---- to look at

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        self._asked = True
        return self._set.by_name

    @property
    def plans(self) -> list[Plan]:
        """The plan of each captured graph, in the order in which they first ran; a recompilation replaces its plan."""
        return [self._set.describe(plan) for plan in self._plans.values()]

    @property
    def unmatched(self) -> dict[str, str]:
        """The cuts that fit none of the graphs so far, and why; and the graphs that stay whole."""
        return {k: v for k, v in self._missed.items() if k not in self._matched} | self._whole

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all heads, for the optimiser."""
        self._asked = True
        return self._set.modules.parameters()

    def state_dict(self) -> dict[str, Any]:
        """The state of all boundaries."""
        return self._set.modules.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:
        """Put back what `state_dict` gave. The boundaries must stand: `prepare` first."""
        return self._set.modules.load_state_dict(state, strict=strict)

    def confirm(self) -> None:
        """Refuse cuts that stand in no graph, and choices for crossings that there are not.

        Raises:
            CutError: with each of them.
            DniGraphError: a choice is for no crossing.
        """
        count = len(self._plans) + len(self._whole)
        if self.unmatched:
            raise CutError(list(self.unmatched.values()), where=CAPTURED.format(f"any of the {count} graph(s)"))
        self._choices.check_names([crossing for plan in self._plans.values() for crossing in plan.crossings])

    # ---- while graphs are captured and run

    def cuts(self, spot: Spot) -> Cuts:
        """The cuts for a graph. What was balanced at this spot before stays where it is."""
        return self._again.get(spot, self._cuts)

    def learn(self, spot: Spot, resolved: Resolved) -> None:
        """Take notice of which cuts a graph has."""
        again = resolved.again or ()
        missed = dict(resolved.missed)
        self._again[spot] = resolved.again
        self._matched |= {f"cut {spec}" for spec in again} - missed.keys()
        for cut, why in missed.items():
            self._missed[cut] = max(self._missed.get(cut, why), why, key=_tells)

    def stay_whole(self, place: str, why: str) -> None:
        """A graph cannot be cut: it runs as it is, with true gradients."""
        self._whole[place] = f"the graph captured at {place} stays whole, with true gradients: {why}"
        warnings.warn(self._whole[place], UnmatchedWarning, stacklevel=2)

    def stand(self, spot: Spot, plan: Plan, nodes: Mapping[str, fx.Node]) -> tuple[Plan, nn.ModuleDict]:
        """The plan with the names that its crossings keep, and the boundaries, made where there were none."""
        crossings = tuple(self._named(spot, c, nodes[c.node]) if c.gradient else c for c in plan.crossings)
        new = self._set.add(crossings, {name: node.meta for name, node in nodes.items()}, self._set.modules.training)
        for crossing in crossings:
            if crossing.gradient:
                self._set.modules[boundary_key(crossing)].to(nodes[crossing.node].meta["device"])
        self._plans[spot] = replace(plan, crossings=crossings)
        self._warn_of_new(new)
        return self._plans[spot], self._set.modules

    def follow(self) -> None:
        """Be in the mode that the model is in."""
        model = self._model()
        mode = model is not None and model.training and not self._rests()
        if mode != self._set.modules.training:
            self._set.modules.train(mode)

    def look_back(self) -> None:
        """After a few steps: warn of cuts that stand nowhere and of heads that no optimiser can have."""
        if self._warned:
            return
        self._warned = True
        lost = [why for why in self.unmatched.values() if why not in self._whole.values()]
        if lost:
            warnings.warn("\n".join(lost), UnmatchedWarning, stacklevel=2)
        if not self._asked and any(True for _ in self._set.modules.parameters()):
            warnings.warn(
                "nobody asked for the heads' parameters: give backend.parameters() to the optimiser, else no head "
                "learns; call backend.prepare(compiled, x) before",
                UnmatchedWarning,
                stacklevel=2,
            )

    def _named(self, spot: Spot, crossing: Crossing, node: fx.Node) -> Crossing:
        """The crossing under the name that it has in all recompilations, and that no other value has."""
        spec = self._choices.spec(crossing, node.meta)
        key = (spot, crossing.name, spec.kind, spec.width, spec.batch_dim)
        if key not in self._names:
            taken, name, count = {n.replace(".", "_") for n in self._names.values()}, crossing.name, 1
            while name.replace(".", "_") in taken:
                count += 1
                name = f"{crossing.name}@{count}"
            self._names[key] = name
        return replace(crossing, name=self._names[key])

    def _warn_of_new(self, new: list[Boundary]) -> None:
        boundaries = {boundary.spec.name: boundary for boundary in new}
        warn_unconditioned(boundaries, "run the forward pass inside `with backend.conditioned(label):`", stacklevel=3)
        late = [name for name, b in boundaries.items() if any(True for _ in b.parameters())]
        if self._asked and late:
            warnings.warn(
                f"a new graph has boundaries on {', '.join(late)}: add their parameters to the optimiser "
                "(backend.boundaries[name].parameters())",
                UnmatchedWarning,
                stacklevel=3,
            )


def _tells(why: str) -> int:
    """How much a reason says of why a cut does not fit: that a module is not in this graph says little."""
    return TELLING.index(why.kind if isinstance(why, Note) else None)
