"""The decoupled model as its users know it: the model's signature, its weights, and boundaries where it was cut."""

import inspect
import warnings
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ..boundaries import Boundary
from ..heads.conditions import Context
from ..passes.errors import DniGraphError
from ..passes.parts.boundary_nodes import boundary_key
from ..passes.plan.plan import Crossing, Plan

MakeBoundary = Callable[[Crossing, Mapping[str, Any], Context], Boundary]  # of a crossing and its node's meta


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
    objects, the model's own keys in its state dict, and the heads under `dni.`. How the model runs, and what `graph`
    and `parts` hold, is the matter of the rung of the capture ladder that it stands on: `CapturedModule` runs graphs,
    `HookedModule` the model itself.
    """

    original: nn.Module  # the very model that was decoupled
    unlock = "update"  # "forward": as a network, its parts run on predicted inputs, too

    def __init__(self, model: nn.Module, make_boundary: MakeBoundary):
        super().__init__(nn.Module(), fx.Graph(), class_name=f"Decoupled{type(model).__name__}")
        self.context = Context()
        self._make_boundary = make_boundary
        self.__dict__["original"] = model  # past nn.Module: its children are ours already
        self.training = model.training
        self._signature = inspect.signature(model.forward)
        type(self).forward = _choosing(self._signature)  # fx makes one class per instance
        self._adopt(model)

    def _adopt(self, model: nn.Module) -> None:
        """Own what the model owns, under the same names, beside the boundaries."""
        prefix = "dni"
        while prefix in model._modules:
            prefix += "_"
        self._prefix: str
        self.__dict__["_prefix"] = prefix
        # The very tables of the model, so that what is replaced there is replaced here.
        self.__dict__["_parameters"], self.__dict__["_buffers"] = model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._modules = {**model._modules, prefix: nn.ModuleDict()}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of ours also where the model has a module or a tensor of that name."""
        theirs = any(name in table for table in (self._modules, self._parameters, self._buffers))
        if theirs and not isinstance(value, nn.Module | torch.Tensor | None):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- to look at

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """The plan of the current mode."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, fx.GraphModule]:
        """The parts of the current mode, in running order; none where the model runs whole."""

    @abstractmethod
    def parameters_of_parts(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that each part trains."""

    @abstractmethod
    def parameters_below(self) -> set[str]:
        """The parameters that hear from boundaries alone."""

    @abstractmethod
    def standing(self) -> dict[str, nn.Module]:
        """What stands on the crossings at this moment, by their names."""

    @abstractmethod
    def standing_in(self, make: Callable[[str], Boundary]) -> AbstractContextManager[None]:
        """Let other boundaries stand on the crossings inside the block; `make` is called with each one's key."""

    @abstractmethod
    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """See to it that a call needs nothing new, leaving no trace."""

    @abstractmethod
    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """All boundaries, by the names of their crossings."""
        return {b.spec.name: b for b in self._held().values() if isinstance(b, Boundary)}

    def _held(self) -> nn.ModuleDict:
        return self._modules[self._prefix]  # type: ignore[return-value]  # made in _adopt

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all heads."""
        return self._held().parameters()

    def model_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the model itself."""
        return self.original.parameters()

    # ---- to run

    def recompile(self) -> Any:
        """Generate the code of the graph; calls go on through the choice of the right way to run."""
        code = super().recompile()
        type(self).forward = _choosing(self.__dict__.get("_signature"))  # one class per instance
        return code

    def conditioned(self, label: Any) -> Any:
        """Let the heads see the label inside the `with` block."""
        return self.context.conditioned(label)

    def _stand(self, asked: Iterable[tuple[Crossing, Mapping[str, Any]]]) -> Iterator[Boundary]:
        """Make boundaries and own them. Their first weights are random, and nobody else's numbers change by it."""
        with torch.random.fork_rng(devices=[]):
            made = [(c, self._make_boundary(c, meta, self.context).train(self.training)) for c, meta in asked]
        for crossing, boundary in made:
            self._held()[boundary_key(crossing)] = boundary
            yield boundary

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
        plain = OrderedDict((k, v) for k, v in state_dict.items() if not k.startswith(own))
        if versions := getattr(state_dict, "_metadata", None):  # some modules refuse a checkpoint without
            plain._metadata = versions  # type: ignore[attr-defined]  # as torch does it
        heads = {k.removeprefix(own): v for k, v in state_dict.items() if k.startswith(own)}
        result = self.original.load_state_dict(plain, strict=strict, assign=assign)
        if heads:
            more = self._held().load_state_dict(heads, strict=strict, assign=assign)
            result.missing_keys.extend(own + key for key in more.missing_keys)
            result.unexpected_keys.extend(own + key for key in more.unexpected_keys)
        return result

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


def canonical(
    model: nn.Module, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call however its arguments were passed, where no hook looks at how they were."""
    if not kwargs:
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    if model._forward_hooks_with_kwargs or model._forward_pre_hooks_with_kwargs:
        order = [*(name for name in signature.parameters if name in kwargs), *kwargs]
        return args, {name: kwargs[name] for name in dict.fromkeys(order)}
    return bound.args, bound.kwargs


def warn_late(boundary: Boundary) -> None:
    """Say that a boundary came when the optimiser had perhaps been made."""
    name = boundary.spec.name
    if any(True for _ in boundary.parameters()):
        warnings.warn(
            f"a call took a new way through the model, with a boundary on '{name}': add "
            f"dm.boundaries['{name}'].parameters() to the optimiser",
            stacklevel=2,
        )


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
