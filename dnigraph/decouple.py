"""`decouple`: model in, decoupled model out; and `plan`, the same without building anything."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .boundaries import BoundaryChoice
from .climb import Climb
from .decoupled.choices import Choices, warn_unconditioned
from .decoupled.module import DecoupledModule, canonical
from .decoupled.on_graphs import CapturedModule
from .heads import HeadChoice
from .heads.conditions import ConditionChoice
from .passes.capture.ladder import capture as run_capture
from .passes.cuts.specs import Cuts
from .passes.errors import DniGraphError
from .passes.plan.plan import Plan


def decouple(
    model: nn.Module,
    cuts: Cuts = None,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    head: "HeadChoice | Mapping[str, HeadChoice]" = "auto",
    condition: ConditionChoice = None,
    boundary: "BoundaryChoice | Mapping[str, BoundaryChoice]" = "dni",
    unlock: str = "update",
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
        unlock: "update": a part need not wait for what comes after it. "forward": nor for what comes before it; its
            inputs are predicted from the model's, and the real values train the predictors. Run it as
            `dm.network(...)`.
        capture: "auto", or the rung of the capture ladder to stand on: "record", "export", "hooks", "symbolic". "auto"
            takes the first of the first three that gives a graph which passes the check; the plan's notes say why those
            above it were refused. On "hooks" the model runs whole: see `HookedModule`.
        check: prove on the example that the rewrite computes the same as the model.

    Raises:
        CutError: cuts do not fit the model; all of them are listed.
        CaptureError: no graph can stand for the model.
        CheckError: the rewrite is not the same function.
        HeadError, BoundaryError, ConditionError: a choice does not fit a crossing.
    """
    _refuse(model)
    if unlock not in ("update", "forward"):
        raise DniGraphError(f"unlock={unlock!r}: say 'update' or 'forward'")
    choices = Choices(head, condition, boundary)
    args, kwargs = _example(example_args, example_kwargs)
    if args is None:
        dm: DecoupledModule = CapturedModule(model, cuts, capture, choices.make)
        _without_example(dm, capture)
        dm.unlock = unlock
        return dm
    cuts = list(cuts) if isinstance(cuts, Iterator) else cuts  # several rungs may read them
    climb = Climb(model, *canonical(model, inspect.signature(model.forward), args, kwargs), cuts, capture)
    dm = climb.first(lambda how: climb.decoupled(how, choices, check))
    if unlock == "forward" and not isinstance(dm, CapturedModule):
        raise DniGraphError("unlock='forward': the model runs whole, on hooks, so no part can run before another")
    dm.unlock = unlock
    dm.train(model.training) if dm.training != model.training else None
    warn_unconditioned(dm.boundaries, "train inside `with dm.conditioned(label):` or with dg.Local", stacklevel=3)
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
    cuts = list(cuts) if isinstance(cuts, Iterator) else cuts
    if args is not None:
        args, kwargs = canonical(model, inspect.signature(model.forward), args, kwargs)
    climb = Climb(model, args, kwargs, cuts, capture)
    return climb.first(climb.plan)


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
