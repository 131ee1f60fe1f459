"""What the user wants to stand on the crossings, and the warning that heads see no label."""

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ..boundaries import Boundary, CrossingSpec, make_boundary
from ..heads.conditions import Context
from ..passes.errors import DniGraphError, nearest
from ..passes.plan.plan import Crossing


class UnconditionedWarning(UserWarning):
    """Heads that cannot see the label: no recipe is known with which they beat freezing the lower parts."""


class Choices:
    """What the user wants to stand on the crossings."""

    def __init__(self, head: Any, condition: Any, boundary: Any):
        self.head, self.condition, self.boundary = head, condition, boundary

    def make(self, crossing: Crossing, meta: Mapping[str, Any], context: Context) -> Boundary:
        """The boundary of a crossing; `meta` says what is known of the node that makes its value."""
        spec = self.spec(crossing, meta)
        choice = _chosen(self.boundary, crossing.name, "dni")
        return make_boundary(choice, spec, context, _chosen(self.head, crossing.name, "auto"))

    def spec(self, crossing: Crossing, meta: Mapping[str, Any]) -> CrossingSpec:
        """What the factories are told of a crossing."""
        at = meta.get("batch_dim", 0)
        condition = self.condition if at is not None else None  # without a batch dimension no label belongs to its rows
        if at is None and len(crossing.shape or ()) > 3:
            at = 0  # regions of images and the like: as many as there happen to be
        shape = _batch_first(crossing.shape or (), at)
        return CrossingSpec(
            crossing.name, shape, meta["dtype"], meta["device"], condition, at, meta.get("channels_first", False)
        )

    def check_names(self, crossings: Iterable[Crossing]) -> None:
        """Refuse a choice for a crossing that there is not."""
        names = [c.name for c in crossings if c.gradient]
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


def warn_unconditioned(boundaries: Mapping[str, Boundary], train: str, stacklevel: int) -> None:
    """Say which heads cannot see the label. `train` says how the label is given."""
    blind = [name for name, b in boundaries.items() if b.kind == "dni" and b.spec.condition is None]
    if blind:
        warnings.warn(
            f"heads on {', '.join(blind[:3])}{', ...' if len(blind) > 3 else ''} cannot see the label; without it a "
            "head's best estimate is only the miscalibration of the parts above. Pass condition=dg.one_hot(classes), "
            f"and {train}",
            UnconditionedWarning,
            stacklevel=stacklevel,
        )
