"""What a run does with a window's end: the user's boundary, read and checked in one place."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from ..boundaries.choices import Made, Scheduled
from ..boundaries.dni import Options as DniOptions
from ..boundaries.schedule import Schedule
from ..passes.errors import is_whole, nearest
from .dni_in_time import InTime
from .recurrent_error import RecurrentError

BOUNDARIES = {
    "dni": "a head predicts the gradient of all that comes later",
    "silent": "nothing crosses the window's end: truncated backprop, the baseline",
    "bptt": "the true gradient, once the sequence has ended: exact backprop through time in a window's memory",
    "shuffled": "another sequence's estimate: the control beside dni",
}
ORACLE = "oracle"  # what "bptt" is called where it stands on a crossing
OWN = "a boundary of your own stands on a crossing, dg.decouple(..., boundary=...)"


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
    """A window's length, what stands at its end, and when the optimisers step."""

    horizon: int
    boundary: str = "dni"  # one of `BOUNDARIES`
    head: InTime = field(default_factory=InTime)
    schedule: Schedule = field(default_factory=Schedule)
    update: str = "window"

    @property
    def stores(self) -> bool:
        """Whether some windows are stored until their sequences end, and then run again backwards."""
        return self.boundary == "bptt" or self.schedule != Schedule()

    @property
    def has_head(self) -> bool:
        """Whether a head predicts anything."""
        return self.boundary in ("dni", "shuffled")

    def share(self, window: int) -> float:
        """The share of the true gradient at a window's end; the first window is 1."""
        return 1.0 if self.boundary == "bptt" else self.schedule.share(window)

    def strengths(self, ending: bool) -> Strengths:
        """How strongly an estimate counts, in streams whose sequences end and in streams without end.

        Where sequences end, the chain of targets ends with them, and the cap holds what is consumed. Delayed recall at
        full strength: without a cap 1 of 2 seeds within 5000 batches, cap 1: 6 of 7, cap 0.3: 10 of 10 (the slowest
        took 4825), cap 0.03: 8 of 8 (2801). On Copy, caps of 0.3 and more slow the core down and 0.03 does not. In a
        stream without end the chain feeds on itself: at full strength and without a cap a character model was lost
        after 304 windows. A tenth of it with a cap of 0.3 stayed finite in all runs. (Tried by hand while the defaults
        were chosen, without kept rows; those of the defaults are in benchmarks/results.)

        Behind a schedule the head's target contains what the core consumes: a stored window is run back once.
        """
        scale, discount, cap = (1.0, 1.0, 0.03) if ending else (0.1, 0.1, 0.3)
        own = self.head
        scale = scale if own.scale is None else own.scale
        discount = discount if own.discount is None else own.discount
        cap_known = cap if isinstance(own.cap, str) else own.cap
        return Strengths(scale, scale if self.schedule != Schedule() else discount, cap_known)

    def plain(self) -> dict[str, Any]:
        """All of it as plain data."""
        rest = {"horizon": self.horizon, "boundary": self.boundary, "update": self.update}
        return {**rest, **asdict(self.head), **asdict(self.schedule)}


def make_options(horizon: Any, boundary: Any, update: Any) -> Options:
    """The options of a run, from what the user gave.

    Raises:
        RecurrentError: they do not fit; all of them are listed.
    """
    misfits = (
        [] if is_whole(horizon, 1) else [f"horizon={horizon!r} (steps of time in a window: a whole number from 1)"]
    )
    if update not in ("window", "sequence"):
        misfits.append(f"update={update!r}: there are window, sequence")
    name, head, schedule, strange = _read(boundary)
    misfits += strange or _together(name, head, schedule)
    if misfits:
        raise RecurrentError(misfits, "see help(dg.Recurrent) and help(dg.dni_in_time) for what each option means")
    return Options(horizon, name, head, schedule, update)


def _read(choice: Any) -> tuple[str, InTime, Schedule, list[str]]:
    """Name, options and schedule of a boundary, through all that goes around it; and what does not fit in it."""
    schedule = Schedule()
    while isinstance(choice, Scheduled):
        schedule, choice = schedule.over(choice.schedule), choice.boundary
    name, own = (choice.name, choice.options) if isinstance(choice, Made) else (choice, None)
    name = "bptt" if name == ORACLE else name
    names = ", ".join(BOUNDARIES)
    if not isinstance(name, str):
        what = "a factory" if callable(name) else repr(name)
        return "", InTime(), schedule, [f"boundary is {what}: at a window's end there are {names}; {OWN}"]
    if name not in BOUNDARIES:
        return "", InTime(), schedule, [f"boundary={name!r}: there are {names}{nearest(name, BOUNDARIES)}"]
    if isinstance(own, DniOptions):
        strange = [f"replay={own.replay}: a head at a window's end replays no earlier windows"] if own.replay else []
        return name, InTime(decay=own.decay), schedule, strange
    return name, own or InTime(), schedule, []


def _together(name: str, head: InTime, schedule: Schedule) -> Iterator[str]:
    """Misfits between a boundary and its schedule."""
    once = "a stored window is run back once, so that the head's target contains what the core consumes"
    alone = {
        "listen_after": (head.listen_after, "true gradients come from the start, or the core does not listen at first"),
        "discount": (head.discount is not None and head.discount != head.scale, once),
        "auxiliary": (head.auxiliary, "stored windows have no auxiliary task"),
        "traces": (head.traces, "both are ways to BP(lambda); choose one"),
    }
    for option, value in asdict(schedule).items():
        if value and name == "shuffled":
            yield f"{option} goes around every boundary but 'shuffled': a control hears no true gradient"
        for own, (given, why) in alone.items():
            if value and given:
                yield f"{option} and {own} do not go together: {why}"
