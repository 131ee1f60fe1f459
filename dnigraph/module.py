"""The decoupled model: a `GraphModule` with the model's signature, its weights, and boundaries where it was cut."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from .boundaries import Boundary
from .conditions import Context
from .passes.capture.call import Mode
from .passes.capture.ladder import capture
from .passes.capture.recording import Recording
from .passes.capture.trees import flatten
from .passes.capture.untouched import random_state, set_random_state
from .passes.cuts import Cuts
from .passes.errors import CaptureError, DniGraphError, GuardMiss
from .passes.guards import Trust
from .passes.plan import Crossing, Plan
from .passes.split import boundary_key
from .variant import Cutting, Variant, assemble, cut, sizes

PATHS = 12  # more ways through a model than this: its structure is decided anew in every step
MakeBoundary = Callable[[Crossing, fx.Node, Context], Boundary]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model into a mode, and afterwards each of its modules back into its own. A mode it is in is left alone."""
    flags = [(m, m.training) for m in model.modules()]
    own = model.training
    try:
        if own != training:
            model.train(training)
        yield
    finally:
        if own != training:
            model.train(own)
        for module, flag in flags:
            module.training = flag


class DecoupledModule(fx.GraphModule):
    """A model cut into parts. Made by `decouple`.

    It is called, trained, moved and saved like the model: same signature, same output types, the same `Parameter`
    objects, the model's own keys in its state dict, and the heads under `dni.`. `graph`, `plan` and `parts` are those
    of the current mode.
    """

    original: nn.Module  # the very model that was decoupled

    def __init__(self, model: nn.Module, cuts: Cuts, how: str, make_boundary: MakeBoundary):
        super().__init__(nn.Module(), fx.Graph(), class_name=f"Decoupled{type(model).__name__}")
        self._settings = (cuts, how, make_boundary)
        self.context = Context()
        self._variants: dict[Any, list[Variant]] = {}
        self._primary: dict[bool, Variant] = {}
        self.__dict__["original"] = model  # past nn.Module: its children are ours already
        self.training = model.training
        self._flagged = list(model.modules())
        self._signature = inspect.signature(model.forward)
        type(self).forward = _choosing(self._signature)  # fx makes one class per instance
        self._adopt(model)

    def _adopt(self, model: nn.Module) -> None:
        """Own what the model owns, under the same names, beside the boundaries."""
        prefix = "dni"
        while prefix in model._modules:
            prefix += "_"
        self.__dict__["_prefix"] = prefix
        # The very tables of the model, so that what is replaced there is replaced here.
        self.__dict__["_parameters"], self.__dict__["_buffers"] = model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._modules = {**model._modules, prefix: nn.ModuleDict()}

    # ---- to look at

    @property
    def plan(self) -> Plan:
        """The plan of the current mode."""
        return self._now().plan

    @property
    def parts(self) -> dict[str, fx.GraphModule]:
        """The parts of the current mode, in running order."""
        return dict(self._now().parts)

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        return {b.spec.name: b for b in self._held().values() if isinstance(b, Boundary)}

    def _held(self) -> nn.ModuleDict:
        return self._modules[self._prefix]  # type: ignore[return-value]  # made in _adopt

    def _now(self) -> Variant:
        found = self._primary.get(self.training) or next(iter(self._primary.values()), None)
        if found is None:
            raise DniGraphError("this model was captured without an example: its plan is complete after the first call")
        return found

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all heads."""
        return self._held().parameters()

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the model itself."""
        return self.original.parameters()

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

    def recompile(self) -> Any:
        """Generate the code of the graph; calls go on through the choice of the right graph."""
        code = super().recompile()
        type(self).forward = _choosing(self.__dict__.get("_signature"))  # one class per instance
        return code

    def conditioned(self, label: Any) -> Any:
        """Let the heads see the label inside the `with` block."""
        return self.context.conditioned(label)

    def choose(self, *args: Any, **kwargs: Any) -> tuple[Variant, list[Any]]:
        """The variant that holds for a call, found without leaving a trace, and its flat inputs.

        Where no guard can miss this costs nothing; else the forward pass is run once and taken back.
        """
        found, inputs = self._known(args, kwargs)
        for variant in found:
            if self._trusted(variant, inputs):
                return variant, inputs
            with self._way_back(always=True), torch.no_grad():
                try:
                    variant.run(inputs)
                except GuardMiss:
                    continue
            variant.proven.add(sizes(inputs))
            return variant, inputs
        return self._record(found, args, kwargs, inputs), inputs

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        found, inputs = self._known(args, kwargs)
        for variant in found:
            if self._trusted(variant, inputs):
                return variant.recording.outputs.build(variant.run(inputs))
            try:
                with self._way_back():
                    values = variant.run(inputs)
            except GuardMiss:
                continue
            variant.proven.add(sizes(inputs))
            return variant.recording.outputs.build(values)
        variant = self._record(found, args, kwargs, inputs)
        return variant.recording.outputs.build(variant.run(inputs))

    def _known(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Variant], list[Any]]:
        """The variants that may hold for a call, in the mode we are in, and the inputs of their graphs."""
        if self._settings[1] == "symbolic":  # its graph takes the arguments whole, whatever they are
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return self._variants.setdefault(self._mode(), []), list(bound.arguments.values())
        args, kwargs = self._canonical(args, kwargs)
        if not kwargs and all(type(arg) is torch.Tensor for arg in args):  # most calls; no tree to take apart
            plain = (self._mode(), None, tuple(map(_signature_of, args)))
            return self._variants.setdefault(plain, []), list(args)
        leaves, spec = flatten((args, kwargs))
        key = (self._mode(), spec, tuple(map(_signature_of, leaves)))
        return self._variants.setdefault(key, []), [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def _canonical(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call however its arguments were passed."""
        if not kwargs:
            return args, kwargs
        bound = self._signature.bind(*args, **kwargs)
        return bound.args, bound.kwargs

    def _mode(self) -> Any:
        """What a recording takes for granted of the model and of torch, and no guard checks."""
        return (tuple([m.training for m in self._flagged]), Mode.now())

    def _trusted(self, variant: Variant, inputs: list[Any]) -> bool:
        how = variant.cutting.trust
        return how is Trust.ALWAYS or (how is Trust.SAME_SIZES and sizes(inputs) in variant.proven)

    @contextmanager
    def _way_back(self, always: bool = False) -> Iterator[None]:
        """Take random numbers and buffers back when a guard misses."""
        state, buffers = random_state(), [(b, b.detach().clone()) for b in self.original.buffers()]
        done = False
        try:
            yield
            done = not always
        finally:
            if not done:
                set_random_state(state)
                with torch.no_grad():
                    for buffer, held in buffers:
                        buffer.copy_(held)

    def _record(self, found: list[Variant], args: Any, kwargs: Any, inputs: list[Any]) -> Variant:
        if len(found) >= PATHS:
            raise CaptureError(
                [f"more than {PATHS} ways through the model for one kind of call: its structure is new in each step"]
            )
        args, kwargs = self._canonical(args, kwargs)
        recording = capture(self.original, args, kwargs, self._settings[1])
        return self._install(recording, found, inputs, strict=not self._primary)

    def _install(self, recording: Recording, found: list[Variant], inputs: list[Any], strict: bool) -> Variant:
        """Cut a recording, make it runnable, with its boundaries, and keep it among the variants `found`."""
        cutting = cut(recording, self.original, self._settings[0], inputs, strict)
        variant = self._assembled(cutting)
        variant.proven.add(sizes(inputs))
        found.append(variant)
        if not self._primary:
            self._settings = (cutting.again, *self._settings[1:])
        if self.training not in self._primary:
            self._primary[self.training] = variant
            self._show()
        return variant

    def add(self, recording: Recording, args: Any, kwargs: Any) -> Variant:
        """Cut and install a recording of `original(*args, **kwargs)` in the present mode; misfits are errors."""
        found, inputs = self._known(args, kwargs)
        return self._install(recording, found, inputs, strict=True)

    def _assembled(self, cutting: Cutting) -> Variant:
        held, make = self._held(), self._settings[2]
        known = self.boundaries
        late = bool(self._primary) and self.training
        with torch.random.fork_rng(devices=[]):  # heads are random, and nobody else's numbers change by it
            for crossing in cutting.plan.crossings:
                if not crossing.gradient or crossing.name in known or not self.training:
                    continue
                boundary = make(crossing, cutting.nodes[crossing.node], self.context)
                held[boundary_key(crossing)] = boundary.train(self.training)
                if late and any(True for _ in boundary.parameters()):
                    warnings.warn(
                        f"a call took a new way through the model, with a boundary on '{crossing.name}': add "
                        f"dm.boundaries['{crossing.name}'].parameters() to the optimiser",
                        stacklevel=2,
                    )
        cutting.plan = described(cutting.plan, self.boundaries)
        return assemble(cutting, self.original, held)

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
        variant = self._now()
        self._graph, self._code = variant.top._graph, variant.top._code

    # ---- modes, moves, copies, checkpoints

    def train(self, mode: bool = True) -> "DecoupledModule":
        """Set the mode of the model and of all its parts."""
        super().train(mode)
        self.original.training = mode
        for variant in self._all_variants():
            for part in variant.parts.values():
                part.training = mode
        if self._primary:
            self._show()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "DecoupledModule":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        for variant in self._all_variants():
            variant.assembly.constants._apply(fn)  # type: ignore[no-untyped-call]  # the same
            variant.assembly.refresh()
        return self

    def _all_variants(self) -> Iterator[Variant]:
        return (variant for found in self._variants.values() for variant in found)

    def recouple(self) -> nn.Module:
        """The plain model back, with the weights that it has now. It is the very model that was decoupled."""
        return self.original

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # both forms of it
        """The model's own state dict, and the boundaries' under `dni.`."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        state: dict[str, Any] = self.original.state_dict(*args, **kwargs)
        inner = {**kwargs, "destination": state, "prefix": f"{prefix}{self._prefix}."}
        self._held().state_dict(*(), **inner)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of this model, or a plain one of the original: then the heads stay as they are."""
        own = f"{self._prefix}."
        plain = {k: v for k, v in state_dict.items() if not k.startswith(own)}
        heads = {k.removeprefix(own): v for k, v in state_dict.items() if k.startswith(own)}
        result = self.original.load_state_dict(plain, strict=strict, assign=assign)
        if heads:
            more = self._held().load_state_dict(heads, strict=strict, assign=assign)
            result.missing_keys.extend(own + key for key in more.missing_keys)
            result.unexpected_keys.extend(own + key for key in more.unexpected_keys)
        for variant in self._all_variants():
            variant.assembly.refresh()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "DecoupledModule":
        """A copy with weights, heads and label context of its own, on the same plans."""
        model = copy.deepcopy(self.original, memo)
        made = memo[id(self)] = DecoupledModule(model, *self._settings)
        held = made._modules[made._prefix] = copy.deepcopy(self._held(), memo)
        made.context = copy.deepcopy(self.context, memo)
        made._variants = {k: [assemble(v.cutting, model, held) for v in found] for k, found in self._variants.items()}
        places = {id(v): (k, i) for k, found in self._variants.items() for i, v in enumerate(found)}
        for mode, variant in self._primary.items():
            key, i = places[id(variant)]
            made._primary[mode] = made._variants[key][i]
        made.train(self.training)
        return made

    def __reduce__(self) -> Any:
        raise DniGraphError(
            "a decoupled model is not pickled: save dm.state_dict() and dm.plan, and decouple where they are loaded"
        )


def _choosing(signature: inspect.Signature | None) -> Callable[..., Any]:
    """A forward method with the model's signature."""

    def forward(self: DecoupledModule, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    if signature is not None:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        try:
            full = signature.replace(parameters=[own, *signature.parameters.values()])
            forward.__signature__ = full  # type: ignore[attr-defined]  # what `inspect` looks for
        except ValueError:  # an argument of the model is called self, too: then `inspect` sees (*args, **kwargs)
            return forward
    return forward


def _signature_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return (leaf.dim(), leaf.dtype, leaf.device.type, leaf.requires_grad)
    try:
        hash(leaf)
    except TypeError:
        return (type(leaf), repr(leaf))
    return (type(leaf), leaf)


def described(plan: Plan, boundaries: Mapping[str, Boundary]) -> Plan:
    """The plan with what stands on its crossings."""

    def told(crossing: Crossing) -> Crossing:
        boundary = boundaries.get(crossing.name)
        if boundary is None or not crossing.gradient:
            return crossing
        return replace(
            crossing, boundary=boundary.kind, head=boundary.head_name, head_parameters=boundary.head_parameters
        )

    return replace(plan, crossings=tuple(map(told, plan.crossings)))
