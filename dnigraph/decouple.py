"""`decouple`: model in, decoupled model out; `plan`, the same without building anything; `places`, what can be cut."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from .boundaries import BoundaryChoice
from .boundaries.choices import Choices, warn_unconditioned
from .decoupled.module import DecoupledModule, canonical, in_mode
from .decoupled.on_graphs import CapturedModule
from .decoupled.on_hooks import HookedModule, HooksWarning, hooked_plan
from .decoupled.specialization import specialize
from .heads import HeadChoice
from .heads.conditions import ConditionChoice
from .heads.head import HeadError
from .network.from_parts import DecoupledNetwork
from .passes.capture.ladder import Climb
from .passes.capture.ladder import capture as run_capture
from .passes.cuts.places import Places, find_places
from .passes.cuts.specs import Cuts
from .passes.errors import CaptureError, CutError, DniGraphError, bullets
from .passes.graph.captured_graph import CapturedGraph
from .passes.graph.pytrees import PLAIN, flatten
from .passes.plan.plan import LEAK, Plan
from .passes.sandbox.journal import all_or_nothing, undone
from .passes.sandbox.object_graph import ObjectGraph
from .passes.sandbox.snapshot import Structure, one_at_a_time
from .proof.check import CheckError, checked


@all_or_nothing
def decouple(
    model: nn.Module,
    cuts: Cuts = None,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    head: "HeadChoice | Mapping[str, HeadChoice]" = "auto",
    condition: ConditionChoice = None,
    boundary: "BoundaryChoice | Mapping[str, BoundaryChoice]" = "auto",
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
        boundary: "auto" (with a label a local loss, else a guarded head; the plan says which), "dni", "local-loss",
            "auglocal", "infopro", "dfa", "oracle", "delayed", "silent", a factory such as `dni(warm_up=100)` or one of
            your own (docs/write-a-boundary.md), or a dict from crossings (or globs) to these.
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
    _refuse(model, cuts, example_args, example_kwargs, unlock)
    if any(p.is_meta for p in model.parameters()):
        words = "the model is on the meta device, without numbers"
        raise DniGraphError(f"{words}: dg.plan shows how it would be cut; decouple it when it holds weights")
    choices = Choices(head, condition, boundary)
    cuts = list(cuts) if isinstance(cuts, Iterator) else cuts  # several rungs may read them
    args, kwargs = _example(model, example_args, example_kwargs)
    if args is None:
        dm: DecoupledModule = _without_example(model, cuts, choices, capture)
    else:
        dm = _by_the_first_rung_that_does(model, args, kwargs, cuts, choices, capture, check)
        for leak in dm.plan.notes_of(LEAK):
            warnings.warn(f"on hooks, {leak}; see dm.plan.notes", HooksWarning, stacklevel=2)
    _refuse_shared(dm)
    if unlock == "forward" and not isinstance(dm, CapturedModule):
        raise DniGraphError("unlock='forward': the model runs whole, on hooks, so no part can run before another")
    dm.unlock = unlock
    if dm.training != model.training:
        dm.train(model.training)
    warn_unconditioned(dm.boundaries, "train inside `with dm.conditioned(label):` or with dg.Local", stacklevel=3)
    return dm


@all_or_nothing
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
    _refuse(model, cuts, example_args, example_kwargs)
    cuts = list(cuts) if isinstance(cuts, Iterator) else cuts
    args, kwargs = _example(model, example_args, example_kwargs)

    def planned(captured: CapturedGraph, whole: bool, reasons: list[str]) -> Plan:
        if whole:
            return _plan_on_hooks(model, captured, cuts, reasons)
        plan = specialize(captured, model, cuts, _tensors(args, kwargs)).plan
        return replace(plan, notes=(*reasons, *plan.notes))

    return _look(model, args, kwargs, capture, planned)


@all_or_nothing
def places(
    model: nn.Module,
    example_args: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    capture: str = "auto",
) -> Places:
    """Where the model can be cut, what would cross there, and suggested cuts. The model is left as it was.

        for place in (found := dg.places(model, x)):
            print(place.path, place.kind, place.shape, place.bytes)    # bytes that cross, in one forward pass
        dm = dg.decouple(model, list(found.suggested[0].cuts), x)      # for two parts

    Args:
        example_args, example_kwargs, capture: as in `decouple`.

    Raises:
        CaptureError: as `decouple`.
    """
    _refuse(model, None, example_args, example_kwargs)
    args, kwargs = _example(model, example_args, example_kwargs)

    def found(captured: CapturedGraph, whole: bool, reasons: list[str]) -> Places:
        annotated = captured if whole else specialize(captured, model, [], _tensors(args, kwargs)).captured
        return find_places(annotated.graph, model, captured.rung)

    return _look(model, args, kwargs, capture, found)


Seen = TypeVar("Seen")


def _look(
    model: nn.Module, args: Any, kwargs: Any, how: str, look: Callable[[CapturedGraph, bool, list[str]], Seen]
) -> Seen:
    """What `look` sees on the first rung of the ladder that does. It is told whether the model runs whole there, and
    why the rungs above were refused.
    """
    climb = Climb(how, model, args, kwargs)
    with _running(model, args, kwargs):
        for rung in climb:
            with climb.attempt(rung):
                if args is None:
                    raise CaptureError(["it needs one example call: pass example_args=(x,)"])
                return look(rung.capture(model, args, kwargs), rung.runs_whole, climb.reasons)
    raise climb.failure()


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]


def _by_the_first_rung_that_does(
    model: nn.Module, args: Any, kwargs: Any, cuts: Cuts, choices: Choices, how: str, check: bool
) -> DecoupledModule:
    """The decoupled model on the first rung of the ladder whose graph can be cut and passes the check."""
    climb = Climb(how, model, args, kwargs)
    with _running(model, args, kwargs):
        for rung in climb:
            with climb.attempt(rung):
                captured = rung.capture(model, args, kwargs)
                if rung.runs_whole:
                    plan = _plan_on_hooks(model, captured, cuts, climb.reasons)
                    dm: DecoupledModule = HookedModule(model, captured.graph, plan, choices.make)
                else:
                    later = how if rung is climb.rungs[0] else rung.name  # the way to capture other modes and paths
                    dm = CapturedModule(model, cuts, later, choices.make, DecoupledNetwork, how == "auto")
                    _add(dm, captured, args, kwargs, climb.reasons)
                choices.check_names(dm.plan.crossings)
                if check:
                    with in_mode(dm, training=False):  # capture eval mode, too, so that the check compares both modes
                        dm.prepare(*args, **kwargs)
                    _check(dm, args, kwargs, last=rung is climb.rungs[-1])
                return dm
    raise climb.failure()


@contextmanager
def _running(model: nn.Module, args: Any, kwargs: Any) -> Iterator[None]:
    """In train mode, with gradients, nobody else capturing. Objects that are arguments hold the same afterwards.

    Raises:
        CaptureError: the model itself fails on the example.
    """
    objects = [leaf for leaf in flatten((args, kwargs))[0] if not isinstance(leaf, PLAIN)]
    structure = Structure(ObjectGraph.below(objects)) if objects else None  # the model may write down its state there
    try:
        with one_at_a_time, in_mode(model, training=True), torch.enable_grad():
            with nullcontext() if structure is None else undone(structure.restore):
                yield
    except DniGraphError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        way = _way_to_run(model, args or (), kwargs or {})
        raise CaptureError([f"the model itself fails on the example: {type(error).__name__}: {line}{way}"]) from error


def _way_to_run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    if (
        len(args) == 1
        and isinstance(args[0], Mapping)
        and set(args[0]) & {*inspect.signature(model.forward).parameters}
    ):
        return ". The example is a dict of arguments: pass it as example_kwargs=batch"
    devices = {str(p.device) for p in model.parameters()}
    others = {str(leaf.device) for leaf in flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
    if len(devices) == 1 and others - devices:
        return f". The model is on {devices.pop()}, the example on {', '.join(sorted(others))}"
    return ""


def _add(dm: CapturedModule, captured: CapturedGraph, args: Any, kwargs: Any, reasons: list[str]) -> None:
    dm.training = True
    try:
        dm.add(captured, args, kwargs, reasons)
    except DniGraphError:
        raise
    except Exception as error:  # the model itself has run, so the graph is at fault: another rung may do
        line = str(error).partition("\n")[0]
        raise CaptureError([f"the graph cannot be run node by node: {type(error).__name__}: {line}"]) from error


def _check(dm: DecoupledModule, args: Any, kwargs: Any, last: bool) -> None:
    try:
        checked(dm, *args, **kwargs)
    except CheckError as error:
        if last:
            raise
        raise CaptureError([f"the graph is not the same function: {error.report.worst}"]) from error


def _plan_on_hooks(model: nn.Module, captured: CapturedGraph, cuts: Cuts, reasons: list[str]) -> Plan:
    try:
        plan = hooked_plan(captured.graph, model, cuts)
    except CutError as error:
        because = f", because {reasons[0]}" if reasons else ""
        raise CutError(error.misfits, where=f"the model, which is only known by its modules{because}") from error
    return replace(plan, notes=(*reasons, *plan.notes))


def _without_example(model: nn.Module, cuts: Cuts, choices: Choices, how: str) -> CapturedModule:
    dm = CapturedModule(model, cuts, how, choices.make, DecoupledNetwork)
    run_capture(model, None, None, how)  # fails now where the model cannot be traced at all
    warnings.warn(
        "without an example the heads' sizes are not known: they are made at the first call in train mode. Call the "
        "model once before you make the optimiser",
        stacklevel=3,
    )
    return dm


def _example(model: nn.Module, args: Any, kwargs: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """The example call in its canonical form; twice None without one."""
    if args is None and kwargs is None:
        return None, None
    if not isinstance(args, tuple | list | None):
        args = (args,)  # a single input, as one writes it first
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [*(type(value).__name__ for value in args), *(f"{name}=" for name in kwargs)]
        words = f"the example does not fit {type(model).__name__}.forward{signature}: {error}"
        raise DniGraphError(f"{words}; given: {', '.join(given) or 'nothing'}") from error
    return canonical(model, signature, args, kwargs)


def _refuse_shared(dm: DecoupledModule) -> None:
    """Refuse boundaries that hold weights of the model: what they learn would change it, unseen."""
    own = {id(parameter): name for name, parameter in dm.original.named_parameters()}
    shared = []
    for name, boundary in dm.boundaries.items():
        if names := [own[id(p)] for p in boundary.parameters() if id(p) in own]:
            shared.append(f"'{name}' holds {', '.join(names[:3])}")
    if shared:
        words = "heads learn by themselves, and these hold weights of the model: "
        raise HeadError(
            f"{words}{'; '.join(shared)}. Give a factory of new modules, or of copies: copy.deepcopy(layer)"
        )


def _refuse(model: Any, cuts: Any, args: Any, kwargs: Any, unlock: Any = "update") -> None:
    """Refuse arguments of the wrong kind, all of them at once.

    Raises:
        DniGraphError: with what was given, and the way out.
    """
    misfits = []
    if isinstance(model, DecoupledModule):
        misfits.append("the model is decoupled already: start from dm.recouple()")
    elif not isinstance(model, nn.Module):
        kind = (
            f"the class {model.__name__}: make a model of it"
            if isinstance(model, type)
            else f"a {type(model).__name__}"
        )
        misfits.append(f"decouple takes an nn.Module, not {kind}")
    elif sharded := [name for name, p in model.named_parameters() if type(p.data).__name__ == "DTensor"]:
        misfits.append(
            f"{len(sharded)} parameters are sharded over processes ({', '.join(sharded[:3])}): decouple first, then "
            "fully_shard the modules of the model, and dm"
        )
    if isinstance(cuts, torch.Tensor | nn.Module):
        was = "a tensor" if isinstance(cuts, torch.Tensor) else "a module"
        misfits.append(f"cuts is {was}; where to cut comes before the example: decouple(model, '2', x)")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(name, str) for name in kwargs)):
        misfits.append(f"example_kwargs is a dict of the model's arguments by name, not {type(kwargs).__name__}")
    if not isinstance(unlock, str) or unlock not in ("update", "forward"):
        misfits.append(f"unlock={unlock!r}: say 'update' or 'forward'")
    if torch.is_inference_mode_enabled():
        misfits.append("this is inside torch.inference_mode(), where no gradient can be recorded: call it outside")
    if misfits:
        raise DniGraphError(misfits[0] if len(misfits) == 1 else "these arguments do not fit:" + bullets(misfits))
