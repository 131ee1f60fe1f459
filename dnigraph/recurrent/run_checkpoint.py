"""What a checkpoint of a recurrent run holds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .carried_state import Place
from .options import weight_of
from .recurrent_error import RecurrentError
from .stored_windows import packed, unpacked

if TYPE_CHECKING:
    from .runner import Recurrent


def state_of(run: "Recurrent") -> dict[str, Any]:
    """Everything that the next window depends on, as plain containers of tensors."""
    learner = run._learner
    groups = {} if learner is None else learner.groups
    traces = None if learner is None or learner.traces is None else learner.traces
    return {
        "modules": {name: module.state_dict() for name, module in run.modules().items()},
        "groups": {
            name: {
                "kind": type(group.optimizer).__name__,
                "optimizer": group.optimizer.state_dict(),
                "scheduler": group.scheduler.state_dict() if group.scheduler else None,
                "gradients": [p.grad for p in group.parameters],
            }
            for name, group in groups.items()
        },
        "place": None if run._place is None else vars(run._place),
        "stored": packed(run._stored),
        "traces": None if traces is None else {"held": traces.held, "jacobian": traces.jacobian},
        "windows": 0 if learner is None else learner.windows,
        "options": vars(run.options),
        "given": run._given,
        "steps": run.steps,
        "skipped": run.skipped,
        "ending": run.ending,
    }


def fitting(run: "Recurrent", state: Mapping[str, Any]) -> dict[str, Any]:
    """The state, when it is one of this model.

    Raises:
        RecurrentError: it is not; all differences are listed.
    """
    misfits, there = [], state.get("options", {})
    for name in ("boundary", "blend", "traces", "auxiliary"):  # what decides which state there is
        own = getattr(run.options, name)
        alike = weight_of if name == "auxiliary" else lambda value: value
        if name in there and alike(own) != alike(there[name]):
            misfits.append(f"{name}={own!r} here and {there[name]!r} in the file")
    both = run._learner is not None and state["groups"]  # else one of them has not seen a window yet
    for name in ("core", "initial", "head", "auxiliary") if both else ("core", "initial"):
        module = run.modules().get(name)
        own = {} if module is None else {k: tuple(getattr(v, "shape", ())) for k, v in module.state_dict().items()}
        theirs = {k: tuple(getattr(v, "shape", ())) for k, v in state["modules"].get(name, {}).items()}
        misfits += [
            f"{name}: {key} is {_said(own, key)} here and {_said(theirs, key)} in the file"
            for key in sorted(own.keys() | theirs.keys())
            if own.get(key) != theirs.get(key)
        ]
    for name, group in ({} if run._learner is None else run._learner.groups).items():
        saved, kind = state["groups"].get(name), type(group.optimizer).__name__
        if saved is not None and saved.get("kind", kind) != kind:
            misfits.append(f"{name}: optimised by {kind} here and {saved['kind']} in the file")
        elif saved is not None and len(saved["optimizer"]["param_groups"]) != len(group.optimizer.param_groups):
            misfits.append(f"{name}: the optimiser has another number of parameter groups than in the file")
    if misfits:
        raise RecurrentError(misfits, "make the runner with the modules and options of the one that was saved")
    return dict(state)


def take_up(run: "Recurrent", state: Mapping[str, Any]) -> None:
    """The run is where it was when `state` was taken.

    Raises:
        RecurrentError: the run was made with other options.
    """
    fitting(run, state)
    own, learner = run.modules(), run._learner
    if learner is not None and set(state["groups"]) != set(learner.groups):
        raise RecurrentError(
            [f"the file has optimisers for {sorted(state['groups'])}, this run for {sorted(learner.groups)}"],
            "give the same boundary= as in the run that was saved",
        )
    for name, found in state["modules"].items():
        if name in own:
            own[name].load_state_dict(found)
    run._stored = unpacked(state["stored"])
    run._place = None if state["place"] is None else Place(**state["place"])
    if learner is None:
        return
    learner.windows = state["windows"]
    for name, group in learner.groups.items():
        saved = state["groups"][name]
        group.optimizer.load_state_dict(saved["optimizer"])
        if group.scheduler is not None and saved["scheduler"] is not None:
            group.scheduler.load_state_dict(saved["scheduler"])
        for parameter, gradient in zip(group.parameters, saved["gradients"], strict=True):
            parameter.grad = gradient
    if learner.traces is not None and state["traces"] is not None:
        learner.traces.held, learner.traces.jacobian = state["traces"]["held"], state["traces"]["jacobian"]


def _said(shapes: Mapping[str, tuple[int, ...]], key: str) -> str:
    return str(list(shapes[key])) if key in shapes else "missing"
