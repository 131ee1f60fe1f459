"""A decoupled model on graphs of the original: one for each mode and each path that calls take through its code."""

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from ..boundaries import Boundary
from ..boundaries.boundary_set import MakeBoundary
from ..boundaries.surroundings import EVERYTHING, Surroundings
from ..passes.capture.ladder import RUNGS, capture
from ..passes.capture.module_graph import observe
from ..passes.cuts.specs import Cuts
from ..passes.errors import CaptureError, DniGraphError, GuardMiss
from ..passes.graph.captured_graph import CapturedGraph, lookup, owned
from ..passes.graph.guards import Trust
from ..passes.graph.own_names import GraphModule
from ..passes.graph.pytrees import take_apart
from ..passes.parts.boundary_nodes import boundary_key, key_of
from ..passes.parts.split import Value
from ..passes.plan.plan import Plan
from ..passes.sandbox.journal import all_or_nothing, undone
from ..passes.sandbox.snapshot import one_at_a_time, taken_back
from .cache import PATHS, Cache, Entry
from .module import DecoupledModule, canonical, warn_late
from .on_hooks import HookedCalls, HooksWarning, hooked_plan
from .specialization import Specialization, assemble, sizes, specialize

MakeNetwork = Callable[..., Any]  # of a module, a loss, an optimiser, p_update, a seed, and whether to keep a log


class CapturedModule(DecoupledModule):
    """A decoupled model that runs as parts. `graph`, `plan` and `parts` are those of the current mode.

    In eval mode, where boundaries do nothing, a call that no graph can stand for runs the original.

    Args:
        how: how graphs for other modes and paths are captured: "auto" or a rung of the capture ladder.
        steps_down: a call in train mode that no graph can stand for runs on hooks, at the same cuts.
    """

    def __init__(
        self,
        model: nn.Module,
        cuts: Cuts,
        how: str,
        make_boundary: MakeBoundary,
        make_network: MakeNetwork,
        steps_down: bool = False,
    ):
        super().__init__(model, make_boundary)
        self._cuts, self._how, self._make_network = cuts, how, make_network
        self._user_cuts, self._steps_down, self._stand_ins = cuts, steps_down, dict[str, Boundary]()
        self._cache = Cache(model, whole_arguments=how in RUNGS and RUNGS[how].whole_arguments)

    # ---- to look at

    @property
    def specialization(self) -> Specialization:
        """The one of the current mode; of the other mode, where there is none yet.

        Raises:
            DniGraphError: the model was captured without an example and did not run yet.
        """
        shown = self._cache.shown
        self.follow()
        specialization = shown.get(self.training) or next(iter(shown.values()), None)
        if specialization is None:
            raise DniGraphError("this model was captured without an example: its plan is complete after the first call")
        return specialization

    @property
    def plan(self) -> Plan:
        """The plan of the current mode."""
        return self.specialization.plan

    @property
    def parts(self) -> dict[str, GraphModule]:
        """The parts of the current mode, in running order."""
        return dict(self.specialization.parts)

    def parameters_of_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each part trains."""
        return {name: [p for p in part.parameters() if p.requires_grad] for name, part in self.parts.items()}

    def parameters_below(self) -> set[str]:
        """The parameters of parts whose values reach the results through boundaries only. Those of no part are none."""
        specialization = self.specialization
        results, crossing = set[str](), set[str]()
        for value in specialization.split.outputs:
            if isinstance(value, Value):
                results.add(value.name)
        for one in specialization.plan.crossings:
            if one.gradient:
                crossing.add(one.node)
        above = set[nn.Parameter]()  # of parts that make a result of the model, or nothing that a boundary is on
        everywhere = set[nn.Parameter]()
        for part in specialization.plan.parts:
            everywhere.update(specialization.parts[part.name].parameters())
            if not results.isdisjoint(part.outputs) or crossing.isdisjoint(part.outputs):
                above.update(specialization.parts[part.name].parameters())
        return {name for name, parameter in self.original.named_parameters() if parameter in everywhere - above}

    def standing(self) -> dict[str, nn.Module]:
        """The modules that are called on the crossings at present, stand-ins included, by the crossings' names."""
        boundaries = self.boundaries
        names = {boundary_key(c): c.name for s in self._cache for c in s.plan.crossings if c.name in boundaries}
        called = [item for s in self._cache for item in s.top.get_submodule("dni")._modules.items()]
        return {names[key]: module for key, module in called if module is not None and key in names}

    @contextmanager
    def standing_in(self, make: Callable[[str], Boundary]) -> Iterator[None]:
        """Replace the boundaries inside the block by those that `make` makes of their keys."""
        own: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []  # what calls boundaries, and those
        stand_ins: dict[str, nn.Module | None] = {}

        def restore() -> None:
            self._stand_ins = {}
            for holder, modules in own:
                holder._modules = modules

        with undone(restore):
            self._stand_ins = {name: make(key_of(name)).train(self.training) for name in self.boundaries}
            for specialization in self._cache:
                holder = specialization.top.get_submodule("dni")
                own.append((holder, holder._modules))
                holder._modules = {}
                for key in own[-1][1]:
                    stand_ins[key] = stand_ins.get(key) or make(key).train(self.training)
                    holder._modules[key] = stand_ins[key]
            yield

    def _show(self) -> None:
        """Let `graph` and `code` be those of the current mode."""
        top = self.specialization.top
        self._graph, self._code = top._graph, top._code

    def __getattr__(self, name: str) -> Any:
        """What the model has under this name, or the part of this name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            cache: Cache | None = self.__dict__.get("_cache")
            shown = {} if cache is None else cache.shown
            for specialization in (shown.get(self.__dict__.get("training", True)), *shown.values()):
                if specialization is not None and name in specialization.parts:
                    return specialization.parts[name]
            raise

    # ---- to run

    def choose(self, *args: Any, **kwargs: Any) -> tuple[Specialization, list[Any]]:
        """The specialization that holds for a call, and its flat inputs. The model is left as it was.

        Where no guard can miss this costs nothing. Else the forward pass is run once and undone.
        """
        entry, inputs = self._find(args, kwargs)
        for specialization in tuple(entry.specializations):
            if _is_trusted(specialization, inputs):
                return specialization, inputs
            with self._undone(specialization, inputs, always=True), torch.no_grad():
                try:
                    specialization.run(inputs)
                except GuardMiss:
                    continue
            entry.held(specialization, sizes(inputs))
            return specialization, inputs
        return self._capture(entry, args, kwargs, inputs), inputs

    def keeps(self, specialization: Specialization) -> bool:
        """Whether a specialization may still be chosen: those of the oldest ways are forgotten."""
        return any(one is specialization for one in self._cache)

    def arguments(
        self, specialization: Specialization, inputs: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call like the one that a specialization was captured for, with other flat inputs."""
        if self._cache.whole_arguments:
            named = OrderedDict(zip(self._signature.parameters, inputs, strict=True))
            bound = inspect.BoundArguments(self._signature, named)
            return bound.args, bound.kwargs
        assert specialization.arguments is not None, "`_add` has set them"
        return specialization.arguments.build(list(inputs))  # type: ignore[no-any-return]  # a pair was taken apart

    @all_or_nothing
    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Capture what a call needs that is not captured yet. The model is left as it was."""
        if self._find(args, kwargs)[0].runs_whole:
            return
        try:
            self.choose(*args, **kwargs)
        except CaptureError:
            if self.training:
                raise
            self._find(args, kwargs)[0].runs_whole = True

    def network(
        self, *, loss: Any, optimizer: Any = None, p_update: float = 1.0, late: int = 0, seed: int = 0,
        log: bool = False,
    ) -> Any:  # fmt: skip
        """The model as a `Network`, each part an agent: it learns what `Local` does, or sporadically, or out of order.

        Args:
            loss: as in `Local`.
            optimizer: as in `Local`; in a dict, heads that it does not name go with their producers. None: Adam, 1e-3.
            p_update: how probable it is that a part learns in a tick.
            late: how many ticks later a part hears of its crossings, each; it runs on meanwhile, on threads at the same
                time as the others. With oracles the gradients are true and late, and go with the weights of their
                tick (PipeDream). Where a tick takes another way through the model, what is under way is learned first.
            seed, log: as in `Network`.
        """
        return self._make_network(self, loss, optimizer, p_update, late, seed, log)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():  # boundaries do nothing, and its tensors cannot be undone
            return self.original(*args, **kwargs)
        entry, inputs = self._find(args, kwargs)
        if entry.runs_whole:
            return self.original(*args, **kwargs)
        if entry.hooked is not None:
            return entry.hooked(args, kwargs, self._stand_ins)
        first = entry.specializations[0] if entry.specializations else None
        if first is not None and _is_trusted(first, inputs):
            return first.build(first.run(inputs))
        return self._call_with_care(entry, args, kwargs, inputs)

    @all_or_nothing
    def _call_with_care(self, entry: Entry, args: Any, kwargs: Any, inputs: list[Any]) -> Any:
        """A call for which no graph may hold."""
        for specialization in tuple(entry.specializations):
            if _is_trusted(specialization, inputs):
                return specialization.build(specialization.run(inputs))
            try:
                with self._undone(specialization, inputs):
                    values = specialization.run(inputs)
            except GuardMiss:
                continue
            entry.held(specialization, sizes(inputs))
            return specialization.build(values)
        try:
            with one_at_a_time:
                specialization = self._capture(entry, args, kwargs, inputs)
        except CaptureError as error:
            if self.training:
                entry.hooked = self._on_hooks(args, kwargs, error)
                return entry.hooked(args, kwargs, self._stand_ins)
            entry.runs_whole = True
            return self.original(*args, **kwargs)  # boundaries do nothing in eval mode: this is the same
        return specialization.build(specialization.run(inputs))

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Entry, list[Any]]:
        self._follow()
        return self._cache.find(args, kwargs)

    def _follow(self) -> None:
        """Have the model's present mode and, where modules of it were replaced, its present children."""
        self.follow()
        if self._cache.is_outdated():
            self._have_children()

    def _undone(
        self, specialization: Specialization, inputs: list[Any], always: bool = False
    ) -> AbstractContextManager[None]:
        """Undo what a run of the graph does to the model and to its inputs: when it fails, or always."""
        captured, constants = specialization.captured, specialization.assembly.constants._buffers
        written = [constants[n] if n in constants else lookup(self.original, {}, n) for n in captured.writes]
        tensors = [*self.original.buffers(), *written, *(inputs[i] for i in captured.spoils)]
        modules = [self.original.get_submodule(path) for path, _ in captured.sets]
        return taken_back(modules, tensors, always)

    # ---- to capture

    def add(self, captured: CapturedGraph, args: Any, kwargs: Any, notes: Sequence[str] = ()) -> None:
        """Cut a captured graph of `original(*args, **kwargs)`, in the present mode, and keep it for such calls.

        Args:
            notes: sentences for the plan.

        Raises:
            CutError: the cuts do not fit.
        """
        self._cache.learn(captured)
        entry, inputs = self._find(args, kwargs)
        call = canonical(self.original, self._signature, args, kwargs)
        self._add(captured, entry, call, inputs, True, notes)

    def _capture(self, entry: Entry, args: Any, kwargs: Any, inputs: list[Any]) -> Specialization:
        """A further specialization, for a call that none of the entry holds for."""
        if len(entry.specializations) >= PATHS:
            if not self.training:  # the model itself does in eval mode
                raise CaptureError([f"more than {PATHS} ways through the model for one kind of call"])
            self._cache.drop_a_way(entry)
        args, kwargs = canonical(self.original, self._signature, args, kwargs)
        if not entry.specializations:
            self._cache.make_room(entry)
        captured = capture(self.original, args, kwargs, self._how)
        if self._cache.learn(captured):
            entry, inputs = self._find(args, kwargs)
        return self._add(captured, entry, (args, kwargs), inputs, strict=not self._cache.shown)

    def _on_hooks(self, args: Any, kwargs: Any, error: CaptureError) -> HookedCalls:
        """The rung below, for a kind of call that no graph can stand for.

        Raises:
            CaptureError: `error`, where a rung was asked for.
        """
        if not self._steps_down:
            raise error
        graph = observe(self.original, args, kwargs)
        plan = hooked_plan(graph, self.original, self._user_cuts, strict=False)  # a further call may lack a cut module
        calls = HookedCalls(self.original, graph, plan, self.boundary_set, late=True)
        cut = any(crossing.gradient for crossing in plan.crossings)
        how = "with the same boundaries" if cut else "with true gradients, since none of the cuts can be made in them"
        warnings.warn(
            f"no graph can stand for a new kind of call ({error.reasons[0]}): such calls run on hooks from now on, "
            f"{how}; they cannot be trained with dg.Local",
            HooksWarning,
            stacklevel=4,
        )
        return calls

    def _add(
        self, captured: CapturedGraph, entry: Entry, call: Any, inputs: list[Any], strict: bool,
        notes: Sequence[str] = (),
    ) -> Specialization:  # fmt: skip
        """Cut the graph, make its boundaries and its modules, and keep it in the entry."""
        cut = specialize(captured, self.original, self._cuts, inputs, strict)
        shown = self._cache.shown
        if self.training:
            metas = {node.name: node.meta for node in captured.graph.nodes}
            around = Surroundings(captured.graph, cut.plan, EVERYTHING, find=partial(owned, captured, self.original))
            new = self.boundary_set.add(cut.plan.crossings, metas, self.training, around, late=bool(shown))
            if shown:
                warn_late(new)
        notes = (*notes, *cut.plan.notes, *self._cache.notes())
        cut.plan = self.boundary_set.describe(replace(cut.plan, notes=notes))
        specialization = assemble(cut, self.original, self.boundary_set.modules)
        specialization.arguments = take_apart(call)[1]
        specialization.proven.add(sizes(inputs))
        entry.specializations.insert(0, specialization)
        if not shown:
            self._cuts = cut.again
        if self.training not in shown:
            shown[self.training] = specialization
            self._show()
        return specialization

    # ---- modes, moves, copies, checkpoints

    def _follow_mode(self) -> Self:
        super()._follow_mode()
        self._follow()
        for specialization in self._cache:
            for part in specialization.parts.values():
                part.training = self.training
        if self._cache.shown:
            self._show()
        return self

    def _moved(self, fn: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        super()._moved(fn)
        like = next(self.original.parameters(), None)
        for specialization in self._cache:
            constants = specialization.assembly.constants
            if fn is not None:
                constants._apply(fn)  # type: ignore[no-untyped-call]  # torch's own has no types
            elif like is not None:
                constants.to(like.device)
            specialization.assembly.refresh()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of this model, or a plain one of the original: then the heads stay as they are."""
        result = super().load_state_dict(state_dict, strict, assign)
        for specialization in self._cache:
            specialization.assembly.refresh()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        """A copy with weights, heads and label context of its own, on the same plans."""
        model = copy.deepcopy(self.original, memo)
        options = (self._how, self.boundary_set.make, self._make_network, self._steps_down)
        result = CapturedModule(model, self._user_cuts, *options)
        result._cuts = self._cuts
        memo[id(self)] = result
        result._copy_boundaries(self, memo)
        result._cache = self._cache.copy(model, result.boundary_set, memo)
        result.unlock = self.unlock
        result.train(self.training)
        return result


def _is_trusted(specialization: Specialization, inputs: list[Any]) -> bool:
    """Whether no guard of its graph can miss for these inputs."""
    trust = specialization.trust
    return trust is Trust.ALWAYS or (trust is Trust.SAME_SIZES and sizes(inputs) in specialization.proven)
