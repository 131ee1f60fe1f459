"""The boundaries of one model in all the graphs that Dynamo makes of it."""

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx, nn

from ..boundaries import Boundary, BoundaryError
from ..boundaries.boundary_set import BoundarySet
from ..boundaries.choices import Choices, warn_unconditioned
from ..boundaries.exchange import overheard
from ..boundaries.fresh_layers import Find
from ..boundaries.surroundings import EVERYTHING, Surroundings
from ..decoupled.module import named_inputs
from ..heads.conditions import Context
from ..passes.cuts.names import IDLE, NEAR, UNKNOWN, UNKNOWN_NEAR
from ..passes.cuts.specs import Cuts, Resolved
from ..passes.errors import CutError
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.plan.partition import unique_name
from ..passes.plan.plan import Crossing, Note, Plan
from .frames import call_of

TELLING = (UNKNOWN, UNKNOWN_NEAR, IDLE, None, NEAR)  # kinds of misfits, the most telling last
CAPTURED = "{} that torch.compile captured of the model"
Key = tuple[Any, ...]


class UnmatchedWarning(UserWarning):
    """A cut fits no graph, a graph is not cut at all, or nobody asked for the heads' parameters."""


@dataclass(frozen=True)
class Spot:
    """Where a graph was captured, and for which instance of its module. Recompilation does not change it."""

    place: str
    instance: str


class Interfaces:
    """The boundaries of one compiled model. A recompiled graph gets the boundaries that its crossings had before.

    Args:
        rests: whether boundaries only pass values on at present, as in eval mode.
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
        """Load what `state_dict` returned. The boundaries must exist: call `prepare` first."""
        return self._set.modules.load_state_dict(state, strict=strict)

    def confirm(self) -> None:
        """Refuse cuts that fit no graph, and choices for crossings that do not exist.

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
        """The cuts for a graph. A balanced cut keeps the places that were chosen for the spot's first graph."""
        return self._again.get(spot, self._cuts)

    def learn(self, spot: Spot, resolved: Resolved) -> None:
        """Note which cuts fit a graph, and why the others do not."""
        again = resolved.again or ()
        missed = dict(resolved.missed)
        self._again[spot] = resolved.again
        self._matched |= {f"cut {spec}" for spec in again} - missed.keys()
        for cut, why in missed.items():
            self._missed[cut] = max(self._missed.get(cut, why), why, key=_tells)

    def stay_whole(self, place: str, why: str) -> None:
        """Note, with a warning, that a graph cannot be cut: it runs as it is, with true gradients."""
        self._whole[place] = f"the graph captured at {place} stays whole, with true gradients: {why}"
        warnings.warn(self._whole[place], UnmatchedWarning, stacklevel=2)

    def stand(self, spot: Spot, plan: Plan, graph: fx.Graph, find: Find) -> tuple[Plan, nn.ModuleDict]:
        """The plan with the names that its crossings had before, and the boundaries, made where there were none.

        Args:
            find: finds what a target of the graph stands for.
        """
        nodes = {node.name: node for node in graph.nodes}
        crossings = tuple(self._named(spot, c, nodes[c.node]) if c.gradient else c for c in plan.crossings)
        metas = {name: node.meta for name, node in nodes.items()}
        inputs = dict(zip(*self._inputs(), strict=True))
        around = Surroundings(graph, replace(plan, crossings=crossings), EVERYTHING, inputs, find)
        new = self._set.add(crossings, metas, self._set.modules.training, around)
        for crossing in crossings:
            if crossing.gradient:
                self._set.modules[boundary_key(crossing)].to(nodes[crossing.node].meta["device"])
        self._plans[spot] = replace(plan, crossings=crossings)
        self._refuse_breaks()
        self._warn_of_new(new)
        return self._plans[spot], self._set.modules

    def follow(self) -> None:
        """Set the boundaries to the mode of the model."""
        model = self._model()
        mode = model is not None and model.training and not self._rests()
        if mode != self._set.modules.training:
            self._set.modules.train(mode)

    @property
    def looks_around(self) -> bool:
        """Whether a boundary looks at the model's inputs, or at the error at its outputs."""
        return self._set.looks_around

    def showing(self, function: Callable[..., Any], given: Sequence[Any]) -> Any:
        """Run a graph with boundaries that look around."""
        seen = self._set.seen(self._set.context.label, *self._inputs())
        with self._set.context.showing(seen):
            results = function(*given)
        return results if seen.outputs is None else type(results)(overheard(seen.outputs, results))

    def _inputs(self) -> tuple[list[str], list[Tensor]]:
        """The names of the tensors that the model is called with at present, and those."""
        model = self._model()
        call = None if model is None else call_of(model)
        return ([], []) if model is None or call is None else named_inputs(model, *call)

    def look_back(self) -> None:
        """After a few steps: warn of cuts that fit no graph, and of heads that no optimiser can have."""
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

    def _refuse_breaks(self) -> None:
        """Refuse several graphs where a boundary looks at the error: only one of them ends in the model's outputs.

        Raises:
            BoundaryError: it names the boundaries.
        """
        wanting = [name for name, boundary in self._set.by_name.items() if "error" in boundary.needs]
        if wanting and len(self._plans) > 1:
            places = ", ".join(spot.place for spot in self._plans)
            raise BoundaryError(
                f"boundaries {', '.join(wanting)} look at the error at the model's outputs, and torch.compile captured "
                f"the model in {len(self._plans)} graphs ({places}), of which only one makes them: compile it with "
                "fullgraph=True, or use dg.decouple"
            )

    def _named(self, spot: Spot, crossing: Crossing, node: fx.Node) -> Crossing:
        """The crossing under its own name: the same in all recompilations, and no other value's."""
        spec = self._choices.spec(crossing, node.meta)
        key = (spot, crossing.name, spec.kind, spec.width, spec.batch_dim)
        if key not in self._names:
            self._names[key] = unique_name(crossing.name, {name.replace(".", "_") for name in self._names.values()})
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
    """The rank of a reason: an unknown module explains least, because another graph may have it."""
    return TELLING.index(why.kind if isinstance(why, Note) else None)
