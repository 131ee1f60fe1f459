"""The options of the credit at a window's end, checked in one place."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..passes.errors import nearest
from .recurrent_error import RecurrentError

BOUNDARIES = {
    "dni": "a head predicts the gradient of all that comes later",
    "silent": "nothing crosses the window's end: truncated backprop, the baseline",
    "oracle": "the true gradient, once the sequence has ended: full backprop through time",
    "shuffled": "another sequence's estimate: the control beside dni",
}


@dataclass
class Ending:
    """Whether it is known that the sequences of a stream end. A runner and the network made of it share one."""

    known: bool = False


class Strengths(NamedTuple):
    """How strongly an estimate counts."""

    scale: float  # how much of it the core consumes
    discount: float  # how much of it the head's own target contains
    cap: float | None  # its largest size, in units of the targets'; None: no limit


@dataclass(frozen=True)
class Options:
    """See `Recurrent` for what each of them means."""

    horizon: int
    boundary: str = "dni"
    scale: float | None = None
    discount: float | None = None
    centre: bool = True
    cap: float | str | None = "auto"
    gain: float = 5.0
    warm_up: int = 0
    auxiliary: bool | float = 0.0
    blend: float | None = None
    traces: float | None = None
    decay: float = 0.99
    update: str = "window"

    def __post_init__(self) -> None:
        misfits = [*self._single(), *self._together()]
        if misfits:
            raise RecurrentError(misfits, "see help(dg.Recurrent) for what each option means")

    def _single(self) -> Iterator[str]:
        """Misfits of single options."""
        if not _whole(self.horizon, 1):
            yield f"horizon={self.horizon!r} (steps of time in a window: a whole number from 1 on)"
        if not _whole(self.warm_up, 0):
            yield f"warm_up={self.warm_up!r} (windows: a whole number from 0 on)"
        if not isinstance(self.boundary, str):
            names = " or ".join(map(repr, BOUNDARIES))
            what = "a function, as decouple takes it" if callable(self.boundary) else repr(self.boundary)
            yield f"boundary is {what}: here it is a name, {names}; scale=, warm_up=, blend=, ... are options beside it"
        elif self.boundary not in BOUNDARIES:
            near = nearest(self.boundary, BOUNDARIES)
            yield f"boundary={self.boundary!r}: there are {', '.join(BOUNDARIES)}{near}"
        if self.update not in ("window", "sequence"):
            yield f"update={self.update!r}: there are window, sequence"
        limits = {"scale": 100, "discount": 1, "auxiliary": 100, "blend": 1, "traces": 1, "decay": 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if not _within(value, most) and (value is not None or name in ("auxiliary", "decay")):
                yield f"{name}={value!r} (a number from 0 to {most})"
        if not isinstance(self.centre, bool):
            yield f"centre={self.centre!r} (True or False)"
        for name in ("cap", "gain"):
            value = getattr(self, name)
            if not (_within(value, 1e9) and value > 0) and not (name == "cap" and value in (None, "auto")):
                yield f"{name}={value!r} (a number above 0{'; None: no cap' if name == 'cap' else ''})"

    def _together(self) -> Iterator[str]:
        """Misfits between options. What is no number counts as given."""
        options = vars(self).items()
        given = {name: bool(v) if isinstance(v, int | float) else v is not None for name, v in options}
        if self.blend is not None and self.traces is not None:
            yield "blend and traces are two ways to BP(lambda): choose one"
        for name in ("blend", "traces", "auxiliary"):
            known = isinstance(self.boundary, str) and self.boundary in BOUNDARIES
            if given[name] and known and self.boundary != "dni":
                yield f"{name} goes with boundary='dni', not with {self.boundary!r}"
        for name in ("warm_up", "discount") if self.blend is not None else ():
            if given[name]:
                yield f"blend and {name} do not go together: a share of the true gradient comes from the start"
        if given["auxiliary"] and self.blend is not None:
            yield "auxiliary and blend do not go together: stored windows have no auxiliary task"

    @property
    def stores(self) -> bool:
        """Whether windows are stored until their sequences end, and then run again backwards."""
        return self.boundary == "oracle" or self.blend is not None

    @property
    def has_head(self) -> bool:
        """Whether a head predicts anything."""
        return self.boundary in ("dni", "shuffled")

    @property
    def auxiliary_weight(self) -> float:
        """The weight of the auxiliary task in the core's loss.

        Its error is counted in units of the targets' size, where the paper's, with weight 1, is in those of the
        gradients themselves, some thousand times smaller. With 0.1, delayed recall was solved on none of 3 seeds.
        """
        return weight_of(self.auxiliary)

    def strengths(self, ending: bool) -> Strengths:
        """How strongly an estimate counts, in streams whose sequences end and in streams without end.

        Where sequences end, the chain of targets ends with them, and the cap holds what is consumed. Delayed recall at
        full strength: without a cap 1 of 2 seeds within 5000 batches, cap 1: 6 of 7, cap 0.3: 10 of 10 (the slowest
        took 4825), cap 0.03: 8 of 8 (2801). On Copy, caps of 0.3 and more slow the core down and 0.03 does not. In a
        stream without end the chain feeds on itself: at full strength and without a cap a character model was lost
        after 304 windows. A tenth of it with a cap of 0.3 stayed finite in all runs. (Tried by hand while the defaults
        were chosen, without kept rows; those of the defaults are in benchmarks/results.)
        """
        scale, discount, cap = (1.0, 1.0, 0.03) if ending else (0.1, 0.1, 0.3)
        return Strengths(
            scale if self.scale is None else self.scale,
            discount if self.discount is None else self.discount,
            cap if isinstance(self.cap, str) else self.cap,
        )


def weight_of(auxiliary: bool | float) -> float:
    """The weight of the auxiliary task: True stands for the default."""
    return 0.003 if auxiliary is True else float(auxiliary)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _within(value: object, most: float) -> bool:
    return isinstance(value, int | float) and 0 <= value <= most
