"""The decoupled model as its users know it: the model's signature, its weights, and boundaries where it was cut."""

import functools
import inspect
import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import fx, nn

from ..boundaries import Boundary
from ..boundaries.boundary_set import LATE, BoundarySet, MakeBoundary
from ..boundaries.exchange import overheard
from ..boundaries.watch import transformed
from ..heads.conditions import Context
from ..passes.errors import CheckpointError, DniGraphError, bullets
from ..passes.graph.own_names import GraphModule, forget_source
from ..passes.graph.pytrees import flatten, unflatten
from ..passes.plan.plan import Plan
from ..passes.sandbox.example import input_names
from ..passes.sandbox.journal import undone
from ..passes.sandbox.snapshot import numbers_kept

# What modules do to all their tensors, and what a model's class may do in its own way.
_MOVES = frozenset(("to", "cuda", "cpu", "xpu", "half", "float", "double", "bfloat16", "type", "share_memory"))


_PLAIN = "take the plain model, dm.recouple(), which has the weights that it has now"  # for what torch writes down


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set a model's mode inside the block; afterwards each of its modules has its own mode again.

    A model that is in that mode already is left alone, with modules that are in the other one. Weights of modules whose
    `train` is their own hold the same numbers afterwards: it may merge and unmerge them, which rounds.
    """
    if isinstance(model, DecoupledModule):
        model.follow()
    modules = [*model.modules(), *([model.original] if isinstance(model, DecoupledModule) else [])]
    flags = [(module, module.training) for module in modules]
    own, merging = model.training, dict[int, torch.Tensor]()
    for module in modules if own != training else ():
        if type(module).train is not nn.Module.train and not isinstance(module, DecoupledModule):
            merging |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}

    def restore() -> None:
        if own != training:
            model.train(own)
        for module, flag in flags:
            module.training = flag

    with numbers_kept(merging.values()), undone(restore):
        if own != training:
            model.train(training)
        yield


class DecoupledModule(fx.GraphModule):
    """A model cut into parts. Made by `decouple`.

    It is called, trained, moved and saved like the model: same signature, same output types, the same `Parameter`
    objects, the model's own keys in its state dict, and the heads under `dni.`. What it has no attribute of its own for
    is the model's: attributes are read there, set there, and methods run on the model (`dm.generate(...)`). A method
    that trains past the boundaries is told of, once. The rung of the capture ladder decides how it runs and what
    `graph` and `parts` hold: `CapturedModule` runs graphs, `HookedModule` the model itself.
    """

    original: nn.Module  # the very model that was decoupled
    unlock = "update"  # "forward": as a network, its parts run on predicted inputs, too

    def __init__(self, model: nn.Module, make_boundary: MakeBoundary):
        super().__init__(nn.Module(), fx.Graph(), class_name=f"Decoupled{type(model).__name__}")
        self.boundary_set = BoundarySet(make_boundary, Context())
        self.context = self.boundary_set.context
        self.__dict__["original"] = model  # not by nn.Module's __setattr__, which would register it as a child
        self.training = model.training
        self._signature = inspect.signature(model.forward)
        type(self).forward = _forward_like(self._signature)  # fx makes a class for each instance
        # Own what the model owns, under the same names, and the boundaries under `prefix`.
        prefix = "dni"
        while prefix in model._modules:
            prefix += "_"
        self._prefix: str
        self.__dict__["_prefix"] = prefix
        # The model's own tables, not copies, so that a tensor that is replaced there is replaced here.
        self.__dict__["_parameters"], self.__dict__["_buffers"] = model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._have_children()
        self._take_over(type(model))
        self.register_load_state_dict_pre_hook(_load_heads)  # type: ignore[no-untyped-call]  # torch's

    def _copy_boundaries(self, other: "DecoupledModule", memo: dict[int, Any]) -> None:
        """Own copies of another model's boundaries and of its label context."""
        self.boundary_set = other.boundary_set.copy(memo)
        self.context = self.boundary_set.context
        self._modules[self._prefix] = self.boundary_set.modules

    def _have_children(self) -> None:
        """Have the model's present children, and the boundaries."""
        if "_prefix" in self.__dict__:  # else it is being made
            self.__dict__["_modules"] = {**self.original._modules, self._prefix: self.boundary_set.modules}

    # ---- what is the model's

    def _take_over(self, kind: type[nn.Module]) -> None:
        """Answer as the model's class where it has operators (`dm[0]`, `len(dm)`) or its own way to move or to be set.

        fx makes a class for each instance, so that these methods are this instance's alone.
        """
        for name in {name for above in kind.__mro__[:-1] for name in vars(above)} if kind is not nn.Module else ():
            method = getattr(kind, name, None)
            if not callable(method) or method is getattr(nn.Module, name, None):
                continue
            if name in _MOVES:
                setattr(type(self), name, _on_both(name))
            elif name.startswith("__") and name.endswith("__") and not hasattr(DecoupledModule, name):
                setattr(type(self), name, _on_original(name))

    def __getattr__(self, name: str) -> Any:
        """What the model has under this name."""
        model = self.__dict__.get("original")
        if model is None or name.startswith("__") or name == self.__dict__.get("_prefix"):
            return super().__getattr__(name)
        try:
            value = getattr(model, name)
        except AttributeError:
            return super().__getattr__(name)  # with an error that names this class
        return self._on_model(value) if inspect.ismethod(value) and value.__self__ is model else value

    def _on_model(self, method: Any) -> Callable[..., Any]:
        """A method of the model, which says so if it trains past the boundaries."""

        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            self._have_children()  # it may have made some
            if self.training and torch.is_grad_enabled() and self.boundaries and _learns(result):
                self._tell_of_method(method.__name__)
            return self if result is self.original else result

        return run

    def _tell_of_method(self, name: str) -> None:
        if name not in self.__dict__.setdefault("_told_of", set()):
            self.__dict__["_told_of"].add(name)
            warnings.warn(
                f"dm.{name}(...) runs the model itself, past the boundaries: what it returns sends true gradients into "
                "all parts. Compute what is to be trained with dm(...)",
                stacklevel=4,
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the model, unless there is one of ours of this name."""
        if not self._is_own(name):
            setattr(self.original, name, value)
            self._have_children()
        elif isinstance(value, nn.Module | torch.Tensor | None) and not _is_property(self, name):
            super().__setattr__(name, value)  # type: ignore[arg-type]  # None too, as torch does it
        else:  # also where the model has a module or a tensor of that name
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_own(name) or not hasattr(self.original, name):
            super().__delattr__(name)
        else:
            delattr(self.original, name)
            self._have_children()

    def _is_own(self, name: str) -> bool:
        """Whether an attribute is set on this module, and not on the model."""
        own = self.__dict__
        model = own.get("original")
        if model is None or name in own or hasattr(type(self), name) or name == own.get("_prefix"):
            return True
        return name.startswith("_") and not hasattr(model, name)

    def __dir__(self) -> list[str]:
        own: list[str] = super().__dir__()  # type: ignore[no-untyped-call]  # torch's own has no types
        return sorted({*own, *dir(self.original)})

    # The model's class may have its own way to do these: to keep a norm in eval mode, to leave frozen weights out.

    def eval(self) -> Self:
        """Set eval mode, as the model does it."""
        self.original.eval()
        return self._follow_mode()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the model, as the model does it, and that of the boundaries."""
        self.original.train(mode)
        return self._follow_mode()

    def follow(self) -> None:
        """Have the model's mode, where it was set on the model itself, or by another that decouples it."""
        if self.training is not self.original.training:
            self._follow_mode()

    def _follow_mode(self) -> Self:
        """Have the model's mode."""
        self._have_children()
        self.training = self.original.training
        self.boundary_set.modules.train(self.training)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let the model's parameters learn or not, as the model does it, and those of the heads."""
        self.original.requires_grad_(requires_grad)
        self.boundary_set.modules.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, those of the heads too."""
        self.original.zero_grad(set_to_none)
        self.boundary_set.modules.zero_grad(set_to_none)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The model's parameters, then those of the heads."""
        yield from self.original.parameters(recurse)
        if recurse:
            yield from self.boundary_set.modules.parameters()

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The same with their names."""
        yield from self.original.named_parameters(prefix, recurse, remove_duplicate)
        if recurse:
            below = f"{prefix}.{self._prefix}" if prefix else self._prefix
            yield from self.boundary_set.modules.named_parameters(below, True, remove_duplicate)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """The model's present children, and the boundaries."""
        self._have_children()
        yield from super().named_children()

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """This module, the model's present modules and the boundaries."""
        self._have_children()
        yield from super().named_modules(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.original._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.boundary_set.modules._apply(fn)  # type: ignore[no-untyped-call]  # the same
        self._moved(fn)
        return self

    def _moved(self, fn: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        """Follow the model, which was moved to another device or type: by `fn`, or by a method of its own."""
        self._have_children()

    def __copy__(self) -> Any:
        raise DniGraphError("a shallow copy of a decoupled model would share its boundaries: use copy.deepcopy(dm)")

    # ---- to look at

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The plan of the current mode."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, GraphModule]:
        """The parts of the current mode, in running order; none where the model runs whole."""

    @abstractmethod
    def parameters_of_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each part trains."""

    @abstractmethod
    def parameters_below(self) -> set[str]:
        """The names of the parameters whose gradients come from boundaries only."""

    @abstractmethod
    def standing(self) -> dict[str, nn.Module]:
        """The modules that are called on the crossings at present, stand-ins included, by the crossings' names."""

    @abstractmethod
    def standing_in(self, make: Callable[[str], Boundary]) -> AbstractContextManager[None]:
        """Replace the boundaries inside the block by those that `make` makes of their keys."""

    @abstractmethod
    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Capture what a call needs that is not captured yet. The model is left as it was."""

    @abstractmethod
    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""

    def _call_showing(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model in train mode, with boundaries that look at its inputs, or at the error at its outputs."""
        names, tensors = named_inputs(self.original, *canonical(self.original, self._signature, args, kwargs))
        seen = self.boundary_set.seen(self.context.label, names, tensors)
        with self.context.showing(seen):
            results, spec = flatten(self._call(*args, **kwargs))
        return unflatten(results if seen.outputs is None else overheard(seen.outputs, results), spec)

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        return self.boundary_set.by_name

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all heads."""
        return self.boundary_set.modules.parameters()

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the model itself."""
        return self.original.parameters()

    # ---- to run

    @property
    def graph(self) -> fx.Graph:
        """The graph of the current mode, for people to look at.

        Raises:
            DniGraphError: torch.export asks for it, to run it.
        """
        if torch.compiler.is_exporting():
            raise DniGraphError("a decoupled model is not exported: export the plain model, dm.recouple()")
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]  # it is a property

    def recompile(self) -> Any:
        """Generate the code of the graph. `forward` still runs `_call`, which chooses the graph for each call."""
        code = super().recompile()
        forget_source(type(self).forward.__code__.co_filename)  # it is never run
        type(self).forward = _forward_like(self.__dict__.get("_signature"))  # fx makes a class for each instance
        return code

    @property
    def loss_scale(self) -> Any:
        """What the loss is multiplied by before its backward pass: a `GradScaler`, a number, or None.

        Heads then learn gradients without the scale, and hand down their estimates times the present one, so that a
        change of it is exact at once. Set it where a `GradScaler` is used: `dm.loss_scale = scaler`. A deep copy of the
        model has none until it is set there.
        """
        return self.context.loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: Any) -> None:
        self.context.scale_by(scale)

    def conditioned(self, label: Any) -> Any:
        """Let the heads see the label inside the `with` block."""
        return self.context.conditioned(label)

    def recouple(self) -> nn.Module:
        """The plain model back, with the weights that it has now. It is the very model that was decoupled."""
        return self.original

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # both forms of it
        """The model's own state dict, and the boundaries' under `dni.`."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        state: dict[str, Any] = self.original.state_dict(*args, **kwargs)
        keep = kwargs.get("keep_vars", args[2] if len(args) > 2 else False)
        self.boundary_set.state_dict(state, f"{prefix}{self._prefix}.", keep)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of this model, or a plain one of the original: then the heads stay as they are.

        The heads' entries are looked at first: where they do not fit, nothing is loaded.

        Raises:
            CheckpointError: it is strict, and the state is not one of this model.
        """
        own = f"{self._prefix}."
        plain = OrderedDict((k, v) for k, v in state_dict.items() if not k.startswith(own))
        if versions := getattr(state_dict, "_metadata", None):  # some modules refuse a checkpoint without
            plain._metadata = versions  # type: ignore[attr-defined]  # as torch does it
        heads = {k.removeprefix(own): v for k, v in state_dict.items() if k.startswith(own)}
        if heads and strict and (misfits := self.boundary_set.misfits(heads)):
            raise CheckpointError(f"the state's heads are not those of this model:{bullets(misfits)}")
        try:
            result = self.original.load_state_dict(plain, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(f"the state is not one of this model: {error}") from error
        if heads:
            more = self.boundary_set.load_state_dict(heads, strict=strict, assign=assign)
            result.missing_keys.extend(own + key for key in more.missing_keys)
            result.unexpected_keys.extend(own + key for key in more.unexpected_keys)
        return result

    def one_sided(self, state: Mapping[str, Any]) -> set[str]:
        """The names of boundaries that are here or in `state`, not in both, and that a later call made, or will make.

        They are no misfit: a state of this model may have them or not.
        """
        own, sides = f"{self._prefix}.", []
        for side in (self.state_dict(), state):
            keys = {name.removeprefix(own).rpartition(".")[0] for name in side if name.startswith(own)}
            sides.append((keys, {key for key in keys if f"{own}{key}.{LATE}" in side}))
        (here, late_here), (there, late_there) = sides
        return (late_here - there) | (late_there - here)

    def varying(self) -> set[str]:
        """The entries that a state of this model may have or lack, in any size."""
        return {f"{self._prefix}.{name}" for name in self.boundary_set.varying()}

    def __prepare_scriptable__(self) -> Any:
        raise DniGraphError(f"a decoupled model is not scripted: {_PLAIN}")

    def __reduce__(self) -> Any:
        raise DniGraphError(
            "a decoupled model is not pickled: save dm.state_dict() and dm.plan, and decouple where they are loaded"
        )


def _load_heads(
    dm: DecoupledModule, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
    errors: list[str],
) -> None:  # fmt: skip
    """Load what a larger model's checkpoint has of the heads. It may be one of the plain model, as our own may."""
    own = f"{prefix}{dm._prefix}."
    heads = {name.removeprefix(own): state.pop(name) for name in list(state) if name.startswith(own)}
    if misfits := dm.boundary_set.misfits(heads) if heads else []:
        errors += [f"{own}{misfit}" for misfit in misfits]
    elif heads:
        dm.boundary_set.load_state_dict(heads, strict=strict, assign=False)
    state |= {own + name: value for name, value in dm.boundary_set.modules.state_dict(keep_vars=True).items()}


def _on_original(name: str) -> Callable[..., Any]:
    """An operator of the model's class, which works on the model."""

    def method(self: DecoupledModule, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self.original), name)(self.original, *args, **kwargs)
        self._have_children()
        return self if result is self.original else result

    method.__name__ = name
    return method


def _on_both(name: str) -> Callable[..., Any]:
    """A way to move that the model's class has its own of: the boundaries move as any module does."""

    def method(self: DecoupledModule, *args: Any, **kwargs: Any) -> Any:
        getattr(self.original, name)(*args, **kwargs)
        getattr(self.boundary_set.modules, name)(*args, **kwargs)
        self._moved(None)
        return self

    method.__name__ = name
    return method


def _is_property(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(type(module), name, None), property)


def _learns(result: Any) -> bool:
    """Whether a result sends gradients back."""
    values = (
        result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else (result,)
    )
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def _forward_like(signature: inspect.Signature | None) -> Callable[..., Any]:
    """A forward method with the model's signature."""

    def forward(self: DecoupledModule, *args: Any, **kwargs: Any) -> Any:
        self.follow()
        if transformed():  # nothing is captured there, and boundaries that may be left out are
            self.boundary_set.leave_out()
            return self.original(*args, **kwargs)
        if torch._C._get_tracing_state() is not None:
            if self.training and self.boundaries:
                raise DniGraphError(f"a decoupled model is not traced in train mode: {_PLAIN}; or trace dm.eval()")
            return self.original(*args, **kwargs)  # boundaries do nothing, and guards would be taken for constants
        for value in args:
            if type(value) is fx.Proxy:
                raise DniGraphError(f"a decoupled model is a graph already, dm.graph, and not traced again: {_PLAIN}")
        if self.training and torch.is_grad_enabled() and not self.__dict__.get("_stand_ins"):
            self.boundary_set.look(self.original)
            if self.boundary_set.looks_around:
                return self._call_showing(args, kwargs)
        return self._call(*args, **kwargs)

    if signature is not None:
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        try:
            full = signature.replace(parameters=[own, *signature.parameters.values()])
            forward.__signature__ = full  # type: ignore[attr-defined]  # what `inspect` looks for
        except ValueError:  # an argument of the model is called self, too: then `inspect` sees (*args, **kwargs)
            return forward
    return forward


def canonical(
    model: nn.Module, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call in one form, however its arguments were passed: positional where that can be.

    A hook that takes keyword arguments sees how they were passed. Then they stay keywords, in the signature's order.
    """
    if not kwargs:
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    if model._forward_hooks_with_kwargs or model._forward_pre_hooks_with_kwargs:
        order = [*(name for name in signature.parameters if name in kwargs), *kwargs]
        return args, {name: kwargs[name] for name in dict.fromkeys(order)}
    return bound.args, bound.kwargs


def named_inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], list[torch.Tensor]]:
    """The tensors of a call, and their names, which are those of a captured graph's inputs."""
    graph, names, tensors = fx.Graph(), list[str](), list[torch.Tensor]()
    for name, leaf in zip(input_names(model, args, kwargs), flatten((args, kwargs))[0], strict=True):
        if isinstance(leaf, torch.Tensor):
            names.append(graph.placeholder(name).name)
            tensors.append(leaf)
    return names, tensors


def warn_late(boundaries: Iterable[Boundary]) -> None:
    """Warn of boundaries with parameters that were made by a later call: the optimiser may exist already."""
    for boundary in boundaries:
        name = boundary.spec.name
        if any(True for _ in boundary.parameters()):
            warnings.warn(
                f"a call took a new way through the model, with a boundary on '{name}': add "
                f"dm.boundaries['{name}'].parameters() to the optimiser",
                stacklevel=2,
            )
