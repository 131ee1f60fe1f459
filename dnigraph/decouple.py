"""`decouple`: model in, decoupled model out; and `plan`, the same without building anything."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import fx, nn

from .boundaries import Boundary, BoundaryChoice, CrossingSpec, make_boundary
from .captured import CapturedModule
from .checking import CheckError
from .checking import check as run_check
from .conditions import ConditionChoice, Context
from .heads import HeadChoice
from .hooked import HookedModule, HooksWarning, hooked_plan
from .module import DecoupledModule, canonical, in_mode
from .passes.capture.hooks import RUNG as HOOKS
from .passes.capture.hooks import observe
from .passes.capture.ladder import capture as run_capture
from .passes.capture.ladder import rungs
from .passes.capture.restless import Restless, Unready
from .passes.capture.trees import flatten
from .passes.cuts import Cuts
from .passes.errors import CaptureError, CutError, DniGraphError, nearest
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
    choices = _Choices(head, condition, boundary)
    args, kwargs = _example(example_args, example_kwargs)
    if args is None:
        dm: DecoupledModule = CapturedModule(model, cuts, capture, choices.make)
        _without_example(dm, capture)
        return dm
    cuts = list(cuts) if isinstance(cuts, Iterator) else cuts  # several rungs may read them
    climb = _Climb(model, *canonical(inspect.signature(model.forward), args, kwargs), cuts, capture)
    dm = climb.first(lambda how: climb.decoupled(how, choices, check))
    dm.train(model.training) if dm.training != model.training else None
    _warn_unconditioned(dm)
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
        args, kwargs = canonical(inspect.signature(model.forward), args, kwargs)
    climb = _Climb(model, args, kwargs, cuts, capture)
    return climb.first(climb.plan)


T = TypeVar("T")


@dataclass
class _Climb:
    """One model and one call of it, on the way along the ladder to the first rung that holds."""

    model: nn.Module
    args: Any
    kwargs: Any
    cuts: Cuts
    how: str
    refused: list[str] = field(default_factory=list)  # why the rungs above are not used, a line each

    def first(self, make: Callable[[str], T]) -> T:
        """What is made on the first rung on which it can be made, and passes the check."""
        with in_mode(self.model, training=True), torch.enable_grad():
            restless = False
            for how in rungs(self.how):
                if restless and how != HOOKS:
                    continue
                try:
                    return make(how)
                except CaptureError as error:
                    self.refused += [r if r.startswith(f"{how}: ") else f"{how}: {r}" for r in error.reasons]
                    restless |= isinstance(error, Restless)
                    if isinstance(error, Unready):
                        break
                except CheckError as error:
                    if self.how != "auto" or how == HOOKS:
                        raise
                    self.refused.append(f"{how}: the graph is not the same function: {error.report.worst}")
        raise CaptureError(self.refused)

    def plan(self, how: str) -> Plan:
        """The plan on a rung."""
        if how == HOOKS:
            return self._hooked_plan(self._observed())
        recording = run_capture(self.model, self.args, self.kwargs, how)
        inputs = None if self.args is None else _tensors((self.args, self.kwargs))
        return self._told(cut(recording, self.model, self.cuts, inputs).plan)

    def decoupled(self, how: str, choices: "_Choices", check: bool) -> DecoupledModule:
        """The decoupled model on a rung, proven where that is asked for."""
        dm = self._hooked(choices) if how == HOOKS else self._captured(how, choices)
        choices.check_names(dm.plan)
        if check:
            run_check(dm, *self.args, **self.kwargs)
        if leak := next((note for note in dm.plan.notes if "leak around" in note), None):
            warnings.warn(f"on hooks, {leak}; see dm.plan.notes", HooksWarning, stacklevel=4)
        return dm

    def _captured(self, how: str, choices: "_Choices") -> DecoupledModule:
        recording = run_capture(self.model, self.args, self.kwargs, how)
        later = "auto" if how == "record" and self.how == "auto" else how  # for other modes and ways
        dm = CapturedModule(self.model, self.cuts, later, choices.make)
        dm.training = True
        try:
            dm.add(recording, self.args, self.kwargs, self.refused)
        except DniGraphError:
            raise
        except Exception as error:  # the model has run: another rung may do
            said = str(error).partition("\n")[0]
            raise CaptureError([f"the graph cannot be run node by node: {type(error).__name__}: {said}"]) from error
        return dm

    def _hooked(self, choices: "_Choices") -> DecoupledModule:
        graph = self._observed()
        return HookedModule(self.model, graph, self._hooked_plan(graph), choices.make)

    def _observed(self) -> fx.Graph:
        if self.args is None:
            raise CaptureError(["it needs one example call: pass example_args=(x,)"])
        return observe(self.model, self.args, self.kwargs)

    def _hooked_plan(self, graph: fx.Graph) -> Plan:
        try:
            return self._told(hooked_plan(graph, self.model, self.cuts))
        except CutError as error:
            why = f", because {self.refused[0]}" if self.refused else ""
            raise CutError(error.misfits, where=f"the model, which is only known by its modules{why}") from error

    def _told(self, plan: Plan) -> Plan:
        return replace(plan, notes=(*self.refused, *plan.notes))


class _Choices:
    """What the user wants to stand on the crossings."""

    def __init__(self, head: Any, condition: Any, boundary: Any):
        self.head, self.condition, self.boundary = head, condition, boundary

    def make(self, crossing: Crossing, meta: Mapping[str, Any], context: Context) -> Boundary:
        at = meta.get("batch_dim", 0)
        shape = _batch_first(crossing.shape or (), at)
        condition = self.condition if at is not None else None  # without a batch dimension no label belongs to its rows
        spec = CrossingSpec(crossing.name, shape, meta["dtype"], meta["device"], condition, at)
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


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in flatten(value)[0] if isinstance(leaf, torch.Tensor)]


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
