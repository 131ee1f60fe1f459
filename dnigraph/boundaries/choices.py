"""From the user's choices to boundaries: by name, by a factory with options, one for all crossings or one for each."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import nn

from ..heads import HeadChoice
from ..heads.conditions import Context
from ..passes.errors import DniGraphError, nearest
from ..passes.plan.plan import Crossing
from .boundary import Boundary, BoundaryError, BoundaryFactory, CrossingSpec
from .dni import Dni, Options
from .local_loss import LocalLoss, Loss
from .oracle import Oracle
from .schedule import Schedule
from .silent import Silent

BoundaryChoice: TypeAlias = "str | BoundaryFactory"


class UnconditionedWarning(UserWarning):
    """Heads that cannot see the label: no recipe is known with which they beat freezing the lower parts."""


class Choices:
    """The user's choices for the crossings of a model: each is one for all, or a dict from names (or globs) to some."""

    def __init__(self, head: Any, condition: Any, boundary: Any):
        self.head, self.condition, self.boundary = head, condition, boundary

    def make(self, crossing: Crossing, meta: Mapping[str, Any], context: Context) -> Boundary:
        """The boundary of a crossing; `meta` says what is known of the node that makes its value."""
        boundary = _chosen(self.boundary, crossing.name, "dni")
        head = _chosen(self.head, crossing.name, "auto")
        return make_boundary(boundary, self.spec(crossing, meta), context, head)

    def spec(self, crossing: Crossing, meta: Mapping[str, Any]) -> CrossingSpec:
        """What the factories are told of a crossing."""
        shape, at = crossing.shape or (), meta.get("batch_dim", 0)
        condition = self.condition if at is not None else None  # without a batch dimension no label belongs to its rows
        if at is None and len(shape) > 3:
            at = 0  # rows such as the regions of images: a batch whose size differs from call to call
        if at is None:
            shape = (1, *shape)
        elif shape:
            shape = (shape[at], *shape[:at], *shape[at + 1 :])
        line = meta.get("channels_first", False)
        return CrossingSpec(crossing.name, shape, meta["dtype"], meta["device"], condition, at, line)

    def check_names(self, crossings: Iterable[Crossing]) -> None:
        """Refuse a choice for a crossing that does not exist.

        Raises:
            DniGraphError: with the nearest names.
        """
        names = [crossing.name for crossing in crossings if crossing.gradient]
        for what, choice in (("head", self.head), ("boundary", self.boundary)):
            if isinstance(choice, Mapping):
                strange = [key for key in choice if not any(fnmatchcase(name, key) for name in names)]
                if strange:
                    listed = ", ".join(f"{key!r}{nearest(key, names)}" for key in strange)
                    known = ", ".join(names) or "none"
                    raise DniGraphError(f"{what}=: no crossing is called {listed}; there are {known}")


def _chosen(choice: Any, name: str, default: str) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    if name in choice:
        return choice[name]
    return next((value for pattern, value in choice.items() if fnmatchcase(name, pattern)), default)


def make_boundary(choice: BoundaryChoice, spec: CrossingSpec, context: Context, head: HeadChoice = "auto") -> Boundary:
    """The boundary that `choice` makes for this crossing.

    `choice` is a name ("dni", "oracle", "local-loss"), one of those as a function with options
    (`dni(warm_up=100)`), or any callable `(spec, context, head) -> Boundary`.

    Raises:
        BoundaryError: there is no such boundary, or the callable made something else.
        HeadError: the head does not fit.
    """
    if isinstance(choice, str) and choice not in NAMED:
        raise BoundaryError(
            f"there is no boundary '{choice}'{nearest(choice, NAMED)}; choose one of {', '.join(NAMED)}, "
            "or give a factory (spec, context, head) -> Boundary"
        )
    if isinstance(choice, nn.Module) or not (isinstance(choice, str) or callable(choice)):
        raise BoundaryError(
            f"a boundary is a name or a factory (spec, context, head) -> Boundary, not {type(choice).__name__}"
        )
    factory = NAMED[choice]() if isinstance(choice, str) else choice
    try:
        boundary = factory(spec, context, head)
    except DniGraphError:
        raise
    except Exception as cause:
        raise BoundaryError(
            f"the boundary factory for '{spec.name}' fails: {type(cause).__name__}: {cause}; it is called with "
            "(spec, context, head)"
        ) from cause
    if not isinstance(boundary, Boundary):
        raise BoundaryError(
            f"the boundary factory for '{spec.name}' must make a Boundary, but made {type(boundary).__name__}"
        )
    return boundary


def dni(
    *, warm_up: int = 0, refresh: int = 0, blend: float = 0.0, replay: int = 0, decay: float = 0.99
) -> BoundaryFactory:
    """A head predicts the gradient. The options trade waiting for quality.

    Args:
        warm_up: in the first so many steps the producer waits for the true gradient while the head already learns.
        refresh: every so many steps the producer gets the true gradient; 0: never.
        blend: the producer waits, and gets this share of what comes from above and the rest from the head, BP(lambda);
            1 is backprop.
        replay: the head also learns from the last so many batches in every step.
        decay: how slowly the running size of the targets forgets.

    Raises:
        BoundaryError: an option is out of its range.
    """
    options, schedule = Options(replay, decay), Schedule(warm_up, refresh, blend)
    if misfits := schedule.misfits() + options.misfits():
        raise BoundaryError(f"dni: these options do not fit: {', '.join(misfits)}")
    made = Made("dni", lambda spec, context, head: Dni(spec, context, head, options), options)
    return Scheduled(made, schedule)


def warm_up(boundary: BoundaryChoice, steps: int) -> BoundaryFactory:
    """Any boundary, behind the true gradient in the first so many steps, in which the boundary already learns.

    Args:
        boundary: "local-loss", a factory, one that is scheduled already: they go into each other.

    Raises:
        BoundaryError: the number of steps is none.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10), boundary=dg.warm_up("local-loss", 500))
    """
    return _checked(boundary, Schedule(warm_up=steps), "warm_up")


def refresh(boundary: BoundaryChoice, every: int) -> BoundaryFactory:
    """Any boundary, with the true gradient every so many steps.

    Raises:
        BoundaryError: the number of steps is none.

    Example:
        >>> control = dg.warm_up(dg.refresh("silent", 8), 500)
    """
    return _checked(boundary, Schedule(refresh=every), "refresh")


def blend(boundary: BoundaryChoice, share: float) -> BoundaryFactory:
    """Any boundary, of which the producer gets one part, and `share` of the true gradient: BP(lambda).

    Raises:
        BoundaryError: the share is not from 0 to 1.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, supplement A.

    Example:
        >>> dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(10), boundary=dg.blend("local-loss", 0.1))
    """
    return _checked(boundary, Schedule(blend=share), "blend")


def silent(*, warm_up: int = 0, refresh: int = 0) -> BoundaryFactory:
    """Nothing is handed down: the control beside every other boundary.

    Args:
        warm_up: in the first so many steps the producer gets the true gradient ("train, then freeze").
        refresh: every so many steps it gets the true gradient, and nothing in between; 0: never.

    Raises:
        BoundaryError: an option is out of its range.
    """
    made = Made("silent", lambda spec, context, head: Silent(spec, context))
    return _checked(made, Schedule(warm_up, refresh), "silent")


def _checked(boundary: BoundaryChoice, schedule: Schedule, name: str) -> BoundaryFactory:
    if misfits := schedule.misfits():
        raise BoundaryError(f"{name}: these options do not fit: {', '.join(misfits)}")
    return Scheduled(boundary, schedule)


@dataclass(frozen=True)
class Made:
    """A factory that says what it makes: `Recurrent` reads it, and makes its own of that kind."""

    name: str  # as in `NAMED`
    make: BoundaryFactory
    options: Any = None

    def __call__(self, spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        return self.make(spec, context, head)


@dataclass(frozen=True)
class Scheduled:
    """The factory of a boundary that follows a schedule, whatever boundary that is. It can be read, too."""

    boundary: BoundaryChoice
    schedule: Schedule

    def __call__(self, spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
        made = make_boundary(self.boundary, spec, context, head)
        if self.schedule != Schedule():
            made.follow(self.schedule)
        return made


def oracle() -> BoundaryFactory:
    """The true gradient: backprop through the same machinery."""
    return Made("oracle", lambda spec, context, head: Oracle(spec, context))


def local_loss(classes: int | None = None, loss: Loss = F.cross_entropy, hidden: int | None = None) -> BoundaryFactory:
    """An auxiliary classifier with a hidden layer of `hidden` units trains the producer, and nothing from above does.

    Args:
        classes: how many scores the classifier gives; None: as many labels as the condition knows.
        loss: of (scores, label), one number. Scores and label are flattened where each token has a label.
        hidden: units of the hidden layer; None: the crossing's width.

    Nothing from above reaches it, so it does not know by what you divide your loss: where an update comes after n
    micro-batches, divide this one too, `loss=lambda s, y: F.cross_entropy(s, y) / n`.
    """
    return lambda spec, context, head: LocalLoss(spec, context, classes, loss, hidden)


NAMED: dict[str, Callable[[], BoundaryFactory]] = {
    "dni": dni,
    "oracle": oracle,
    "local-loss": local_loss,
    "silent": silent,
}


def warn_unconditioned(boundaries: Mapping[str, Boundary], train: str, stacklevel: int) -> None:
    """Warn of heads that cannot see the label. `train` says how to give it."""
    blind = []
    for name, boundary in boundaries.items():
        if boundary.kind == "dni" and boundary.spec.condition is None:
            blind.append(name)
    if blind:
        warnings.warn(
            f"heads on {', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''} cannot see the label; without it a "
            "head's best estimate is only the miscalibration of the parts above. Pass condition=dg.one_hot(classes), "
            f"and {train}",
            UnconditionedWarning,
            stacklevel=stacklevel,
        )
