"""A decoupled model on graphs of the original: one for each mode and each way that calls take through its code."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ..boundaries import Boundary
from ..boundaries.boundary_set import MakeBoundary
from ..passes.capture.ladder import RUNGS, capture
from ..passes.cuts.specs import Cuts
from ..passes.errors import CaptureError, DniGraphError, GuardMiss
from ..passes.graph.captured_graph import CapturedGraph, lookup
from ..passes.graph.guards import Trust
from ..passes.graph.nodes import Mode
from ..passes.graph.pytrees import flatten
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.parts.split import Value
from ..passes.plan.plan import Plan
from ..passes.sandbox.rng import random_state, set_random_state
from ..passes.sandbox.snapshot import Held, one_at_a_time
from .assemble import parameters_of
from .attribute_guards import Settings, looked_into, warn_changed
from .module import DecoupledModule, canonical, warn_late
from .specialization import Specialization, assemble, sizes, specialize

MakeNetwork = Callable[..., Any]  # of a module, a loss, an optimiser, p_update, a seed, and whether to keep a log
_ABSENT = object()
PATHS = 12  # more ways through a model than this: its structure is decided anew in every step


class CapturedModule(DecoupledModule):
    """A decoupled model that runs as parts. `graph`, `plan` and `parts` are those of the current mode.

    In eval mode, where boundaries do nothing, a call that no graph can stand for runs the original.
    """

    def __init__(self, model: nn.Module, cuts: Cuts, how: str, make_boundary: MakeBoundary, make_network: MakeNetwork):
        super().__init__(model, make_boundary)
        self._make_network = make_network
        self._settings = (cuts, how)
        self._whole_arguments = how in RUNGS and RUNGS[how].whole_arguments
        self._variants: dict[Any, list[Specialization]] = {}
        self._whole: set[int] = set()  # lists of variants (by id) for kinds of calls that no graph can stand for
        self._primary: dict[bool, Specialization] = {}
        self._beside = Settings(model)

    # ---- to look at

    @property
    def plan(self) -> Plan:
        """The plan of the current mode."""
        return self.specialization.plan

    @property
    def parts(self) -> dict[str, fx.GraphModule]:
        """The parts of the current mode, in running order."""
        return dict(self.specialization.parts)

    def parameters_of_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each part trains."""
        return {name: parameters_of(part) for name, part in self.parts.items()}

    def parameters_below(self) -> set[str]:
        """The parameters of parts whose values reach the results through boundaries only."""
        results = {value.name for value in self.specialization.split.outputs if isinstance(value, Value)}
        learns = {c.node for c in self.plan.crossings if c.gradient}
        open_parts = {p.name for p in self.plan.parts if results & set(p.outputs) or not set(p.outputs) & learns}
        heard = {id(q) for name in open_parts for q in self.parts[name].parameters()}
        return {name for name, q in self.original.named_parameters() if id(q) not in heard}

    def standing(self) -> dict[str, nn.Module]:
        """What stands on the crossings at this moment, by their names."""
        names = {boundary_key(c): c.name for v in self._all_variants() for c in v.plan.crossings}
        return {
            names[key]: boundary
            for v in self._all_variants()
            for key, boundary in v.top.get_submodule("dni")._modules.items()
            if boundary is not None and key in names and names[key] in self.boundaries
        }

    @property
    def specialization(self) -> Specialization:
        """The one of the current mode; of the other mode, where there is none yet.

        Raises:
            DniGraphError: the model was captured without an example and did not run yet.
        """
        found = self._primary.get(self.training) or next(iter(self._primary.values()), None)
        if found is None:
            raise DniGraphError("this model was captured without an example: its plan is complete after the first call")
        return found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            primary = self.__dict__.get("_primary") or {}
            for variant in (primary.get(self.__dict__.get("training", True)), *primary.values()):
                if variant is not None and name in variant.parts:
                    return variant.parts[name]
            raise

    # ---- to run

    def choose(self, *args: Any, **kwargs: Any) -> tuple[Specialization, list[Any]]:
        """The variant that holds for a call, found without leaving a trace, and its flat inputs.

        Where no guard can miss this costs nothing; else the forward pass is run once and taken back.
        """
        found, inputs = self._known(args, kwargs)
        if id(found) in self._whole:
            raise CaptureError(["no graph can stand for this kind of call"])
        for variant in found:
            if self._trusted(variant, inputs):
                return variant, inputs
            with self._way_back(variant, inputs, always=True), torch.no_grad():
                try:
                    variant.run(inputs)
                except GuardMiss:
                    continue
            variant.proven.add(sizes(inputs))
            return variant, inputs
        return self._record(found, args, kwargs, inputs), inputs

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """See to it that a call needs nothing new, leaving no trace."""
        try:
            self.choose(*args, **kwargs)
        except CaptureError:
            if self.training:
                raise
            self._whole.add(id(self._known(args, kwargs)[0]))

    def network(
        self, *, loss: Any, optimizer: Any = None, p_update: float = 1.0, seed: int = 0, log: bool = False
    ) -> Any:
        """The model as a `Network`, each part an agent: it learns what `Local` does, or sporadically, or out of order.

        Args:
            loss: as in `Local`.
            optimizer: as in `Local`; in a dict, heads that it does not name go with their producers. None: Adam, 1e-3.
            p_update: how probable it is that a part learns in a tick.
            seed, log: as in `Network`.
        """
        return self._make_network(self, loss, optimizer, p_update, seed, log)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        found, inputs = self._known(args, kwargs)
        if id(found) in self._whole:
            return self.original(*args, **kwargs)
        for variant in found:
            if self._trusted(variant, inputs):
                return variant.build(variant.run(inputs))
            try:
                with self._way_back(variant, inputs):
                    values = variant.run(inputs)
            except GuardMiss:
                continue
            variant.proven.add(sizes(inputs))
            return variant.build(values)
        try:
            with one_at_a_time:
                variant = self._record(found, args, kwargs, inputs)
        except CaptureError:
            if self.training:
                raise
            self._whole.add(id(found))
            return self.original(*args, **kwargs)  # boundaries do nothing in eval mode: this is the same
        return variant.build(variant.run(inputs))

    def _known(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Specialization], list[Any]]:
        """The variants that may hold for a call, in the mode we are in, and the inputs of their graphs."""
        if self._whole_arguments:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._current((self._mode(),)), list(bound.arguments.values())
        args, kwargs = canonical(self.original, self._signature, args, kwargs)
        if not kwargs and all(type(arg) is torch.Tensor for arg in args):  # most calls; no tree to take apart
            plain = (self._mode(), None, tuple(map(_signature_of, args)))
            return self._current(plain), list(args)
        leaves, spec = flatten((args, kwargs))
        key = (self._mode(), spec, tuple(map(_signature_of, leaves)))
        return self._current(key), [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def _current(self, key: Any) -> list[Specialization]:
        """The variants for a kind of call, without those whose graphs do not fit the tensors of the model any more."""
        found = self._variants.setdefault(key, [])
        for variant in [v for v in found if not v.assembly.follow()]:
            found.remove(variant)
            self._primary = {mode: v for mode, v in self._primary.items() if v is not variant}
        return found

    def _make_room(self, found: list[Specialization]) -> None:
        """Keep graphs for a few settings of the model only, and say that there is a new one."""
        key = next(key for key, variants in self._variants.items() if variants is found)
        like = [k for k, v in self._variants.items() if v and k[1:] == key[1:] and k[0][:-1] == key[0][:-1]]
        if like:
            warn_changed()
        for old in like[: len(like) - PATHS + 1]:
            gone = self._variants.pop(old)
            self._primary = {mode: v for mode, v in self._primary.items() if v not in gone}

    def _follow(self) -> None:
        """Start anew where modules of the model were replaced, or hooks came or went."""
        if self._beside.moved():
            self._modules = {**self.original._modules, self._prefix: self.boundary_set.modules}
            self._variants, self._primary = {}, {}

    def _mode(self) -> Any:
        """What a captured graph takes for granted of the model and of torch, and no guard checks."""
        self._follow()
        beside = self._beside
        return (tuple([m.training for m in beside.modules]), Mode.now(), beside.learning(), beside.now())

    def _trusted(self, variant: Specialization, inputs: list[Any]) -> bool:
        how = variant.trust
        return how is Trust.ALWAYS or (how is Trust.SAME_SIZES and sizes(inputs) in variant.proven)

    @contextmanager
    def _way_back(self, variant: Specialization, inputs: list[Any], always: bool = False) -> Iterator[None]:
        """Take back all that a run of a graph does to the model and to its inputs, when a guard misses or always."""
        captured, held = variant.captured, variant.assembly.constants._buffers
        written = [held[n] if n in held else lookup(self.original, {}, n) for n in captured.writes]
        tensors = [*self.original.buffers(), *written, *(inputs[i] for i in captured.spoils)]
        kept, state = [Held(t) for t in tensors], random_state()
        modules = [(self.original.get_submodule(path), name) for path, name in captured.sets]
        places: list[tuple[dict[str, Any], str]] = [(t, name) for m, name in modules for t in (vars(m), m._buffers)]
        attributes = [(place, name, place.get(name, _ABSENT)) for place, name in places]
        done = False
        try:
            yield
            done = not always
        finally:
            if not done:
                set_random_state(state)
                for one in kept:
                    one.restore()
                for place, name, value in attributes:
                    place.pop(name, None) if value is _ABSENT else place.update({name: value})

    def _record(self, found: list[Specialization], args: Any, kwargs: Any, inputs: list[Any]) -> Specialization:
        if len(found) >= PATHS:
            raise CaptureError(
                [
                    f"more than {PATHS} ways through the model for one kind of call: its structure is new in each "
                    "step; decouple it with capture='hooks'"
                ]
            )
        args, kwargs = canonical(self.original, self._signature, args, kwargs)
        if not found:
            self._make_room(found)
        captured = capture(self.original, args, kwargs, self._settings[1])
        if self._learned(captured):
            found = self._known(args, kwargs)[0]
        return self._install(captured, found, inputs, strict=not self._primary)

    def _learned(self, captured: CapturedGraph) -> bool:
        """Know better now which plain values of the model count. True where that is news."""
        known = (self._beside.ignored, self._beside.opened)
        self._beside.ignore(captured.sets)
        self._beside.open(looked_into(captured.graph))
        return known != (self._beside.ignored, self._beside.opened)

    def _install(
        self,
        captured: CapturedGraph,
        found: list[Specialization],
        inputs: list[Any],
        strict: bool,
        notes: Sequence[str] = (),
    ) -> Specialization:
        """Cut a captured, make it runnable, with its boundaries, and keep it among the variants `found`."""
        cut = specialize(captured, self.original, self._settings[0], inputs, strict)
        cut.plan = replace(cut.plan, notes=(*notes, *cut.plan.notes))
        variant = self._assembled(cut)
        variant.proven.add(sizes(inputs))
        found.append(variant)
        if not self._primary:
            self._settings = (cut.again, self._settings[1])
        if self.training not in self._primary:
            self._primary[self.training] = variant
            self._show()
        return variant

    def add(self, captured: CapturedGraph, args: Any, kwargs: Any, notes: Sequence[str] = ()) -> Specialization:
        """Cut and install a captured graph of `original(*args, **kwargs)` in the present mode; misfits are errors.

        Args:
            notes: what the plan should say besides.
        """
        self._learned(captured)
        found, inputs = self._known(args, kwargs)
        return self._install(captured, found, inputs, True, notes)

    def _assembled(self, cut: Specialization) -> Specialization:
        if self.training:
            meta = {node.name: node.meta for node in cut.captured.graph.nodes}
            crossings = [(c, meta[c.node]) for c in cut.plan.crossings if c.gradient]
            new = self.boundary_set.add(crossings, self.training)
            if self._primary:
                warn_late(new)
        cut.plan = self.boundary_set.describe(cut.plan)
        return assemble(cut, self.original, self.boundary_set.modules)

    @contextmanager
    def standing_in(self, make: Callable[[str], Boundary]) -> Iterator[None]:
        """Let other boundaries stand on the crossings inside the block; `make` is called with each one's key."""
        holders = [v.top.get_submodule("dni") for v in self._all_variants()]
        kept = [holder._modules for holder in holders]
        stand_ins = {key: make(key).train(self.training) for own in kept for key in own}
        try:
            for holder, own in zip(holders, kept, strict=True):
                holder._modules = {key: stand_ins[key] for key in own}
            yield
        finally:
            for holder, own in zip(holders, kept, strict=True):
                holder._modules = own

    def _show(self) -> None:
        """Let `graph` and `code` be those of the current mode."""
        variant = self.specialization
        self._graph, self._code = variant.top._graph, variant.top._code

    # ---- modes, moves, copies, checkpoints

    def train(self, mode: bool = True) -> "CapturedModule":
        """Set the mode of the model and of all its parts."""
        self._follow()
        super().train(mode)
        self.original.training = mode
        for variant in self._all_variants():
            for part in variant.parts.values():
                part.training = mode
        if self._primary:
            self._show()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "CapturedModule":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        for variant in self._all_variants():
            variant.assembly.constants._apply(fn)  # type: ignore[no-untyped-call]  # the same
            variant.assembly.refresh()
        return self

    def _all_variants(self) -> Iterator[Specialization]:
        return (variant for found in self._variants.values() for variant in found)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of this model, or a plain one of the original: then the heads stay as they are."""
        result = super().load_state_dict(state_dict, strict, assign)
        for variant in self._all_variants():
            variant.assembly.refresh()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "CapturedModule":
        """A copy with weights, heads and label context of its own, on the same plans."""
        model = copy.deepcopy(self.original, memo)
        made = memo[id(self)] = CapturedModule(model, *self._settings, self.boundary_set.make, self._make_network)
        made._copy_boundaries(self, memo)
        held = made.boundary_set.modules
        made._beside.ignore(self._beside.ignored)
        made._beside.open(self._beside.opened)
        made.unlock = self.unlock
        made._variants = {k: [assemble(v, model, held) for v in found] for k, found in self._variants.items()}
        places = {id(v): (k, i) for k, found in self._variants.items() for i, v in enumerate(found)}
        for mode, variant in self._primary.items():
            key, i = places[id(variant)]
            made._primary[mode] = made._variants[key][i]
        made.train(self.training)
        return made


def _signature_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (leaf.dim(), leaf.dtype, leaf.device.type, leaf.requires_grad)
    try:
        hash(leaf)
    except TypeError:
        return (type(leaf), repr(leaf))
    return (type(leaf), leaf)
