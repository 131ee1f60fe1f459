"""`torch.compile(model, backend=Backend(cuts=...))`, or the same with `backend="dnigraph"` and options."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from ..boundaries import Boundary, BoundaryChoice
from ..boundaries.choices import Choices
from ..decoupled.module import in_mode
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice, Context
from ..passes.cuts.specs import Cuts
from ..passes.errors import DniGraphError, nearest
from ..passes.graph.mark import traced_mark
from ..passes.graph.pytrees import flatten, unflatten
from ..passes.plan.plan import Plan
from ..passes.sandbox.snapshot import fresh_copies, untouched
from .compiled_graph import Captured
from .frames import compiled_model, owns, plain
from .interfaces import Interfaces

_serving: "weakref.WeakKeyDictionary[nn.Module, Backend]" = weakref.WeakKeyDictionary()
_of_options: "dict[int, tuple[Any, Backend]]" = {}  # the options are kept, so that their id stays theirs


class Backend:
    """A backend for `torch.compile` that cuts each graph which Dynamo captures, and puts boundaries on the crossings.

        dni = Backend(cuts="layer2", condition=one_hot(10))
        compiled = torch.compile(model, backend=dni)
        dni.prepare(compiled, x)                                            # captures, makes the heads, changes nothing
        optimizer = Adam([*model.parameters(), *dni.parameters()])
        with dni.conditioned(y):
            loss = loss_fn(compiled(x), y)
        loss.backward()

    Dynamo does guards, recompilation, modes and dynamic shapes. Heads belong to the model: recompilation keeps them,
    and another model has others. A graph break passes the true gradient on; a cut must lie inside one graph.

    Args:
        cuts, head, condition, boundary: as in `decouple`. A number of parts counts for each captured graph by itself; a
            cost in time counts as flops, because nothing is timed here.
        compiler: what compiles each part by itself: "eager" (nothing), "inductor", another backend, or a callable.
        model: whose module paths the cuts are; needed only where a function is compiled that calls the model.

    Raises:
        DniGraphError: there is no such compiler.
    """

    def __init__(
        self,
        cuts: Cuts = None,
        *,
        head: "HeadChoice | Mapping[str, HeadChoice]" = "auto",
        condition: ConditionChoice = None,
        boundary: "BoundaryChoice | Mapping[str, BoundaryChoice]" = "auto",
        compiler: "str | Callable[..., Any]" = "eager",
        model: nn.Module | None = None,
    ):
        torch.compiler.allow_in_graph(traced_mark)  # type: ignore[no-untyped-call]  # torch's
        known = torch.compiler.list_backends(None)
        if isinstance(compiler, str) and compiler not in known:
            raise DniGraphError(f"there is no compiler {compiler!r}{nearest(compiler, known)}")
        self.compiler = compiler
        self.context = Context()
        self.__name__ = "dnigraph"
        self._choices = Choices(head, condition, boundary)
        self._cuts = list(cuts) if isinstance(cuts, Iterator) else cuts
        self._model = plain(model)
        self._preparing = False
        self._interfaces: weakref.WeakKeyDictionary[nn.Module, Interfaces] = weakref.WeakKeyDictionary()

    def __call__(self, module: fx.GraphModule, examples: list[Any]) -> Captured:
        """What Dynamo calls with each graph that it captures."""
        return Captured(self._find, self.compiler, module, examples)

    # ---- to use

    def prepare(self, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Capture one call of a compiled model in train mode, so that its heads exist. The model stays as it was.

        Raises:
            CutError: a cut fits none of the graphs.
            DniGraphError: Dynamo captured nothing, or a head or boundary is chosen for a crossing that there is not.
        """
        leaves, spec = flatten((args, kwargs))
        args, kwargs = unflatten(fresh_copies(leaves), spec)
        model: nn.Module = plain(compiled) if self._model is None else self._model
        self._preparing = True
        try:
            with untouched(model), in_mode(model, training=True), torch.enable_grad():
                compiled(*args, **kwargs)
        finally:
            self._preparing = False
        if model not in self._interfaces:
            raise DniGraphError(
                "Dynamo captured no graph of this call: it ran eagerly, as TORCH_LOGS=graph_breaks explains; "
                "dg.decouple captures without Dynamo"
            )
        self.of(model).confirm()

    def conditioned(self, label: Any) -> Any:
        """Let the heads see the label inside the `with` block."""
        return self.context.conditioned(label)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all heads, of all models that were compiled with this backend.

        Raises:
            DniGraphError: no model ran yet, so there are no heads.
        """
        if not self._interfaces:
            raise DniGraphError(_TOO_EARLY)
        return (p for interfaces in self._interfaces.values() for p in interfaces.parameters())

    def of(self, model: nn.Module) -> Interfaces:
        """The boundaries of a model, compiled or plain.

        Raises:
            DniGraphError: the model did not run yet with this backend.
        """
        if (interfaces := self._interfaces.get(plain(model))) is None:
            raise DniGraphError(_TOO_EARLY)
        return interfaces

    @property
    def boundaries(self) -> dict[str, Boundary]:
        """As `of(model).boundaries`, where there is one model."""
        return self._only().boundaries

    @property
    def plans(self) -> list[Plan]:
        """As `of(model).plans`, where there is one model."""
        return self._only().plans

    @property
    def unmatched(self) -> dict[str, str]:
        """As `of(model).unmatched`, where there is one model."""
        return self._only().unmatched

    def state_dict(self) -> dict[str, Any]:
        """As `of(model).state_dict()`, where there is one model."""
        return self._only().state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Any:
        """As `of(model).load_state_dict(state)`, where there is one model."""
        return self._only().load_state_dict(state, strict)

    def _only(self) -> Interfaces:
        if len(self._interfaces) > 1:
            raise DniGraphError(f"this backend serves {len(self._interfaces)} models: say backend.of(model)")
        for interfaces in self._interfaces.values():
            return interfaces
        raise DniGraphError(_TOO_EARLY)

    # ---- for the graphs

    def _find(self, tensors: set[int]) -> tuple[nn.Module, Interfaces] | None:
        """The model whose graph runs now with these tensors, by their ids, and its boundaries; None: one without cuts.

        Raises:
            DniGraphError: a function was compiled, and nobody said whose paths the cuts are.
        """
        if self._model is not None:
            model = self._model if owns(self._model, tensors) else None
        else:
            model = compiled_model(tensors)
            if model is None and tensors:
                raise DniGraphError(
                    "torch.compile was called on a function: compile the model instead, or say whose module paths the "
                    "cuts are: dg.Backend(cuts, model=model)"
                )
        if model is None:
            return None
        if model not in self._interfaces:
            self._interfaces[model] = Interfaces(
                model, self._cuts, self._choices, self.context, lambda: self._preparing
            )
            _serving[model] = self
        return model, self._interfaces[model]


_TOO_EARLY = (
    "no graph has been captured yet: call backend.prepare(compiled, x), or the compiled model once in train mode"
)
_OPTIONS = tuple(inspect.signature(Backend).parameters)


def dnigraph(module: fx.GraphModule, examples: list[Any], options: Mapping[str, Any] | None = None) -> Captured:
    """The backend by its name: `torch.compile(model, backend="dnigraph", options={"cuts": ...})`.

    The options are the arguments of `Backend`. `backend_of(compiled)` gives the `Backend` behind it.

    Raises:
        DniGraphError: there is no such option.
    """
    if id(options) not in _of_options:
        if strange := [name for name in options or () if name not in _OPTIONS]:
            listed = ", ".join(f"{name!r}{nearest(name, _OPTIONS)}" for name in strange)
            raise DniGraphError(f"there is no option {listed}; there are {', '.join(_OPTIONS)}")
        _of_options[id(options)] = (options, Backend(**options or {}))
    return _of_options[id(options)][1](module, examples)


def backend_of(compiled: nn.Module) -> Backend:
    """The backend that serves a compiled model, however it was given to `torch.compile`.

    Raises:
        DniGraphError: the model did not run yet.
    """
    if (backend := _serving.get(plain(compiled))) is None:
        raise DniGraphError("no graph of this model has been captured yet: call the compiled model once with gradient")
    return backend
