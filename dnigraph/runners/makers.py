"""The arguments that all runners take, and the optimisers that a user's functions make: checked before a run."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ..passes.errors import DniGraphError

NAMES = 6  # of parameters that an error lists
BARE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # torch's and Python's own: something misfits

Named = Callable[[], Iterable[tuple[str, nn.Parameter]]]


def run_misfits(loss: Any, optimizer: Any, scheduler: Any, clip: Any, monitor: Any) -> list[str]:
    """A line for each of these arguments of a runner that does not fit."""
    misfits = loss_misfits(loss) + maker_misfits(optimizer, scheduler)
    if optimizer is None:
        misfits.append("optimizer=None: give a function, optimizer=lambda params: torch.optim.Adam(params, 1e-3)")
    norms = clip.values() if isinstance(clip, Mapping) else () if clip is None else (clip,)
    wrong = [norm for norm in norms if isinstance(norm, bool) or not isinstance(norm, int | float) or not norm > 0]
    misfits += [f"clip={norm!r}: it is the largest norm of a gradient, a number above 0" for norm in wrong]
    if isinstance(monitor, bool) or not isinstance(monitor, int) or monitor < 0:
        misfits.append(f"monitor={monitor!r}: it is a whole number of steps; 0: never")
    return misfits


def loss_misfits(loss: Any) -> list[str]:
    """A line if the loss is none."""
    if isinstance(loss, type) and issubclass(loss, nn.Module):
        return [f"loss={loss.__name__} is a class: make one, loss={loss.__name__}()"]
    if callable(loss) or isinstance(loss, str):
        return []
    return [f"loss={loss!r}: it is a function of (output, target), or the name of a field of the output"]


def maker_misfits(optimizer: Any, scheduler: Any = None) -> list[str]:
    """A line for each of these arguments, or entries of them where they are dicts, that is no function."""
    misfits = []
    for name, choice, kind in (("optimizer", optimizer, torch.optim.Optimizer), ("scheduler", scheduler, LRScheduler)):
        for made in choice.values() if isinstance(choice, Mapping) else () if choice is None else (choice,):
            argument = "params" if name == "optimizer" else "optimizer"
            if isinstance(made, kind):
                given = f"{name}= takes a function that makes one, not a {type(made).__name__} that is made already"
                misfits.append(f"{given}: {name}=lambda {argument}: {type(made).__name__}({argument}, ...)")
            elif not callable(made):
                misfits.append(f"{name}={made!r}: it is a function that makes one, or a dict of such functions")
    return misfits


def make_optimizer(
    make: Any, parameters: list[nn.Parameter], group: str, named: Named,
    error: Callable[[str], DniGraphError] = DniGraphError,
) -> torch.optim.Optimizer:  # fmt: skip
    """The optimiser that a user's function makes of these parameters.

    An optimiser of other parameters would leave these as they are, without a word, and step others twice.

    Args:
        group: what the parameters belong to, for the error.
        named: all parameters of the run with their names.
        error: makes the error.

    Raises:
        DniGraphError: it fails, makes something else, or an optimiser of other parameters; the names are listed.
    """
    try:
        optimizer = make(list(parameters))
    except DniGraphError:
        raise
    except Exception as cause:
        way = "it is called with a list of parameters: optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        raise error(f"optimizer(...) of {group} failed: {type(cause).__name__}: {cause}; {way}") from cause
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        way = "optimizer=lambda params: torch.optim.Adam(params, 1e-3)"
        raise error(f"optimizer(...) of {group} must return a torch optimiser, not a {kind}: {way}")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        kind = type(optimizer).__name__
        way = f"take one that steps on gradients alone, or train drop-in: {kind}(dm.parameters()).step(closure)"
        raise error(
            f"optimizer(...) of {group} is {kind}, whose step computes the loss again: no part alone can; {way}"
        )
    held, own = {p for g in optimizer.param_groups for p in g["params"]}, set(parameters)
    if held == own:
        return optimizer
    names = {p: name for name, p in named()}
    missing, strange = _listed(own - held, names), _listed((held - own) & names.keys(), names)
    wrong = [f"it lacks {missing}"] * bool(missing) + [f"it holds {strange}, which are others'"] * bool(strange)
    if wrong:
        facts = f"optimizer(...) of {group} returned an optimiser of other parameters: {'; '.join(wrong)}"
        way = "let it hold those that it is called with: optimizer=lambda params: torch.optim.Adam(params, ...)"
        frozen = ", and freeze what shall not learn: requires_grad_(False)" if missing else ""
        raise error(f"{facts}; {way}{frozen}")
    return optimizer  # it also holds some of the user's own: those of a loss, say


def _listed(parameters: set[nn.Parameter], names: Mapping[nn.Parameter, str]) -> str:
    found = sorted(names.get(p, f"one of shape {list(p.shape)}") for p in parameters)
    more = [f"{len(found) - NAMES} more"] * (len(found) > NAMES)
    return ", ".join([*found[:NAMES], *more])
