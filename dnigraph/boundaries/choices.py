"""From a user's choice to a boundary."""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import nn

from ..heads import HeadChoice
from ..heads.conditions import Context
from ..passes.errors import nearest
from .boundary import Boundary, BoundaryError, CrossingSpec
from .dni import Dni, Options
from .local_loss import LocalLoss, Loss
from .oracle import Oracle

BoundaryFactory: TypeAlias = Callable[[CrossingSpec, Context, HeadChoice], Boundary]
BoundaryChoice: TypeAlias = "str | BoundaryFactory"


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
    boundary = (NAMED[choice]() if isinstance(choice, str) else choice)(spec, context, head)
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
    options = Options(warm_up, refresh, blend, replay, decay)
    return lambda spec, context, head: Dni(spec, context, head, options)


def oracle() -> BoundaryFactory:
    """The true gradient: backprop through the same machinery."""
    return lambda spec, context, head: Oracle(spec, context)


def local_loss(classes: int | None = None, loss: Loss = F.cross_entropy, hidden: int | None = None) -> BoundaryFactory:
    """An auxiliary classifier with a hidden layer of `hidden` units trains the producer, and nothing from above does.

    Args:
        classes: how many scores the classifier gives; None: as many labels as the condition knows.
        loss: of (scores, label), one number. Scores and label are flattened where each token has a label.
        hidden: units of the hidden layer; None: the crossing's width.
    """
    return lambda spec, context, head: LocalLoss(spec, context, classes, loss, hidden)


NAMED: dict[str, Callable[[], BoundaryFactory]] = {"dni": dni, "oracle": oracle, "local-loss": local_loss}
