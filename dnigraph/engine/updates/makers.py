"""The arguments that all runners take, and the optimisers that a user's functions make: checked before a run."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ...boundaries.watch import TrainingWarning
from ...passes.errors import DniGraphError, is_number, is_whole
from ...passes.graph.pytrees import flatten

LOOKS = 8  # steps from one whole look at a model's parameters to the next
NAMES = 6  # of parameters that an error lists
BARE = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)  # torch's and Python's own: something misfits

Named = Callable[[], Iterable[tuple[str, nn.Parameter]]]


def run_misfits(loss: Any, optimizer: Any, scheduler: Any, clip: Any, monitor: Any) -> list[str]:
    """A line for each of these arguments of a runner that does not fit."""
    misfits = loss_misfits(loss) + maker_misfits(optimizer, scheduler)
    if optimizer is None:
        misfits.append("optimizer=None: give a function, optimizer=lambda params: torch.optim.Adam(params, 1e-3)")
    norms = clip.values() if isinstance(clip, Mapping) else () if clip is None else (clip,)
    wrong = [norm for norm in norms if not (is_number(norm) and norm > 0)]
    misfits += [f"clip={norm!r}: it is the largest norm of a gradient, a number above 0" for norm in wrong]
    if not is_whole(monitor):
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


class Detached:
    """Tells, once, of a loss that carries no gradient where the output does: nothing learns from it."""

    def __init__(self) -> None:
        self._told = False

    def look(self, loss: Tensor, output: Any, stacklevel: int = 2) -> None:
        """One look at a loss, and at the output that it was computed of."""
        if loss.requires_grad or self._told:
            return
        if any(isinstance(value, Tensor) and value.requires_grad for value in flatten(output)[0]):
            self._told = True
            warnings.warn(
                "the loss carries no gradient, and the output does: what computes the output, and the heads, learn "
                "nothing from it. Compute it of the output itself, without detach(), .data, item(), numbers of numpy, "
                "or a new tensor",
                TrainingWarning,
                stacklevel=stacklevel + 1,
            )


class Unheld:
    """Sees that parameters learn which no optimiser of a run holds, and tells of them, once.

    They were frozen when the run was made, as layers are that are to learn later, or are of a module that came later.

    Args:
        named: the parameters of the model with their names.
        held: those that the optimisers hold.
    """

    def __init__(self, named: Named, held: Callable[[], Iterable[nn.Parameter]]):
        self._named, self._held = named, held
        self._asleep: list[nn.Parameter] = []  # frozen ones, at the last whole look
        self._told: set[str] = set()
        self._looks = 0

    def look(self, soon: bool = False, stacklevel: int = 2) -> None:
        """One look, at the beginning of a step: a whole one if some wake up, in every `LOOKS`-th step, or `soon`."""
        self._looks += 1
        if not (soon or self._looks % LOOKS == 1 or any(p.requires_grad for p in self._asleep)):
            return
        held, named = set(self._held()), list(self._named())
        self._asleep = [p for _, p in named if not p.requires_grad]
        names = {p: name for name, p in named if p.requires_grad and p not in held and name not in self._told}
        if names:
            self._told.update(names.values())
            warnings.warn(
                f"no optimiser of this run holds {_listed(set(names), names)}: they were frozen when the run was made, "
                "or came later, and do not learn. Make the run anew. What is to learn later may be frozen after the "
                "run is made: then it learns as soon as it has requires_grad=True",
                TrainingWarning,
                stacklevel=stacklevel + 1,
            )


def _listed(parameters: set[nn.Parameter], names: Mapping[nn.Parameter, str]) -> str:
    found = sorted(names.get(p, f"one of shape {list(p.shape)}") for p in parameters)
    more = [f"{len(found) - NAMES} more"] * (len(found) > NAMES)
    return ", ".join([*found[:NAMES], *more])
