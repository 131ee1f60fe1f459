"""`decouple`: model in, decoupled model out; and `plan`, the same without building anything."""

import warnings
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import fx, nn

from .boundaries import Boundary, BoundaryChoice, CrossingSpec, make_boundary
from .checking import check as run_check
from .conditions import ConditionChoice, Context
from .heads import HeadChoice
from .module import DecoupledModule, in_mode
from .passes.capture.ladder import capture as run_capture
from .passes.capture.trees import flatten
from .passes.cuts import Cuts
from .passes.errors import DniGraphError, nearest
from .passes.plan import Crossing, Plan
from .variant import cut


class UnconditionedWarning(UserWarning):
    """Heads that cannot see the label: no recipe is known with which they beat freezing the lower parts."""


def decouple(
    model: nn.Module,
    cuts: Cuts = None,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    head: "HeadChoice | Mapping[str, HeadChoice]" = "auto",
    condition: ConditionChoice = None,
    boundary: "BoundaryChoice | Mapping[str, BoundaryChoice]" = "dni",
    capture: str = "auto",
    check: bool = True,
) -> DecoupledModule:
    """The model cut into parts that learn without waiting for each other.

    The model itself stays as it is, hooks included; the result works on the same parameters. Heads draw their first
    weights from torch's random state, which is put back afterwards.

    Args:
        model: any module.
        cuts: where to cut: a module path (after it), `before(path)`, `after(path)`, a glob, "re:...", a node name, an
            edge (a, b), a module type, a function of a node, a plan, `dg.cut`, a number of parts (chosen so that the
            largest costs as little as can be; `balanced` has the choices), or a list that mixes these. None: at the
            marks that the model carries. []: nowhere.
        example_args, example_kwargs: one call of the model, of any batch size; the decoupled model takes others too.
        head: "auto", another name, a factory (spec) -> module, or a dict from crossings (or globs) to these.
        condition: what the heads see of the label: `one_hot(10)`, `embedded(vocabulary, width)`, or a factory.
        boundary: "dni", "oracle", "local-loss", a factory such as `dni(warm_up=100)`, or a dict from crossings (or
            globs) to these.
        capture: "auto", or the rung of the capture ladder to stand on: "record", "symbolic".
        check: prove on the example that the rewrite computes the same as the model.

    Raises:
        CutError: cuts do not fit the model; all of them are listed.
        CaptureError: no graph can stand for the model.
        CheckError: the rewrite is not the same function.
        HeadError, BoundaryError, ConditionError: a choice does not fit a crossing.
    """
    _refuse(model)
    choices = _Choices(head, condition, boundary)
    dm = DecoupledModule(model, cuts, capture, choices.make)
    args, kwargs = _example(example_args, example_kwargs)
    if args is None:
        _without_example(dm, capture)
        return dm
    with in_mode(model, training=True), torch.enable_grad():
        recording = run_capture(model, args, kwargs, capture)
        dm.training = True
        dm.add(recording, args, kwargs)
    dm.train(model.training) if dm.training != model.training else None
    choices.check_names(dm.plan)
    _warn_unconditioned(dm)
    if check:
        run_check(dm, *args, **kwargs)
    return dm


def plan(
    model: nn.Module,
    cuts: Cuts = None,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    capture: str = "auto",
) -> Plan:
    """What `decouple` would match and cut. Nothing is built, and the model is left as it was.

    Raises:
        CutError, CaptureError: as `decouple`.
    """
    _refuse(model)
    args, kwargs = _example(example_args, example_kwargs)
    with in_mode(model, training=True), torch.enable_grad():
        recording = run_capture(model, args, kwargs, capture)
        inputs = None if args is None else [v for v in flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        return cut(recording, model, cuts, inputs).plan


class _Choices:
    """What the user wants to stand on the crossings."""

    def __init__(self, head: Any, condition: Any, boundary: Any):
        self.head, self.condition, self.boundary = head, condition, boundary

    def make(self, crossing: Crossing, node: fx.Node, context: Context) -> Boundary:
        at = node.meta.get("batch_dim", 0)
        shape = _batch_first(crossing.shape or (), at)
        condition = self.condition if at is not None else None  # without a batch dimension no label belongs to its rows
        spec = CrossingSpec(crossing.name, shape, node.meta["dtype"], node.meta["device"], condition, at)
        choice = _chosen(self.boundary, crossing.name, "dni")
        return make_boundary(choice, spec, context, _chosen(self.head, crossing.name, "auto"))

    def check_names(self, plan: Plan) -> None:
        """Refuse a choice for a crossing that there is not."""
        names = [c.name for c in plan.crossings if c.gradient]
        for what, choice in (("head", self.head), ("boundary", self.boundary)):
            if isinstance(choice, Mapping):
                strange = [k for k in choice if not any(fnmatchcase(name, k) for name in names)]
                if strange:
                    said = ", ".join(f"{key!r}{nearest(key, names)}" for key in strange)
                    raise DniGraphError(
                        f"{what}=: no crossing is called {said}; there are {', '.join(names) or 'none'}"
                    )


def _batch_first(shape: tuple[int, ...], at: int | None) -> tuple[int, ...]:
    return (1, *shape) if at is None else (shape[at], *shape[:at], *shape[at + 1 :]) if shape else shape


def _chosen(choice: Any, name: str, default: str) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    if name in choice:
        return choice[name]
    return next((value for pattern, value in choice.items() if fnmatchcase(name, pattern)), default)


def _example(args: Any, kwargs: Mapping[str, Any] | None) -> tuple[Any, Any]:
    if args is None and kwargs is None:
        return None, None
    if isinstance(args, torch.Tensor | Mapping):
        args = (args,)  # a single input, as one writes it first
    return tuple(args or ()), dict(kwargs or {})


def _refuse(model: Any) -> None:
    if isinstance(model, DecoupledModule):
        raise DniGraphError("the model is decoupled already: start from dm.recouple()")
    if not isinstance(model, nn.Module):
        raise DniGraphError(f"decouple takes an nn.Module, not a {type(model).__name__}")


def _without_example(dm: DecoupledModule, capture: str) -> None:
    run_capture(dm.original, None, None, capture)  # says now whether it can be traced at all
    warnings.warn(
        "without an example the heads' sizes are not known: they are made at the first call in train mode. Call the "
        "model once before you make the optimiser",
        stacklevel=3,
    )


def _warn_unconditioned(dm: DecoupledModule) -> None:
    blind = [name for name, b in dm.boundaries.items() if b.kind == "dni" and b.spec.condition is None]
    if blind:
        warnings.warn(
            f"heads on {', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''} cannot see the label; without it a "
            "head's best estimate is only the miscalibration of the parts above. Pass condition=dg.one_hot(classes), "
            "and train inside `with dm.conditioned(label):` or with dg.Local",
            UnconditionedWarning,
            stacklevel=3,
        )
