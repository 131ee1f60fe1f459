"""The head at a window's end, with the options that exist only in time."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..boundaries.boundary import Boundary, BoundaryError, CrossingSpec
from ..boundaries.choices import Made
from ..heads import HeadChoice
from ..heads.conditions import Context
from ..passes.errors import is_number, is_whole
from .recurrent_error import RecurrentError

# The weight of the auxiliary task. Its error is counted in units of the targets' size, where the paper's, with weight
# 1, is in those of the gradients themselves, some thousand times smaller. With 0.1, delayed recall was solved on none
# of 3 seeds.
AUXILIARY = 0.003


@dataclass(frozen=True)
class InTime:
    """See `dni_in_time` for what each of them means."""

    scale: float | None = None
    discount: float | None = None
    centre: bool = True
    cap: float | str | None = "auto"
    gain: float = 5.0
    decay: float = 0.99
    listen_after: int = 0
    auxiliary: float = 0.0
    traces: float | None = None

    def misfits(self) -> Iterator[str]:
        """A line for each option that is out of its range."""
        if not is_whole(self.listen_after):
            yield f"listen_after={self.listen_after!r} (windows: a whole number from 0 on)"
        limits = {"scale": 100, "discount": 1, "auxiliary": 100, "traces": 1, "decay": 1}
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


def dni_in_time(
    *,
    scale: float | None = None,
    discount: float | None = None,
    centre: bool = True,
    cap: float | str | None = "auto",
    gain: float = 5.0,
    decay: float = 0.99,
    listen_after: int = 0,
    auxiliary: bool | float = False,
    traces: float | None = None,
    shuffled: bool = False,
) -> Made:
    """The boundary at a window's end of `Recurrent`: a head predicts the gradient of all later losses.

    Args:
        scale, discount: how much of an estimate the core consumes, and how much of it the head's own target contains.
            None, and "auto" for the cap: see `Options.strengths`. Where both are equal, one backward pass serves both.
        centre: consume the estimate without its mean over the batch.
        cap: its largest size, in units of the targets' size; None: none.
        gain: how much faster than the core the head learns under the same optimiser.
        decay: how slowly the running size of the targets forgets.
        listen_after: so many windows at first in which the head learns and the core does not listen to it. (In
            `dg.warm_up(boundary, n)` it listens to the true gradient instead.)
        auxiliary: the core also predicts the estimate at the next window's end, with this weight in its loss; True:
            0.003.
        traces: BP(lambda) online: the head learns by eligibility traces. Costs the Jacobian of every window.
        shuffled: each sequence consumes another one's estimate: the control.

    Raises:
        RecurrentError: options are out of their ranges; all of them are listed.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1; Pemberton & Costa 2024, arXiv 2401.07044 (traces).

    Example:
        >>> rnn = dg.Recurrent(core, horizon=4, loss=loss, optimizer=adam, boundary=dg.dni_in_time(auxiliary=True))
    """
    weight = AUXILIARY * auxiliary if isinstance(auxiliary, bool) else auxiliary
    options = InTime(scale, discount, centre, cap, gain, decay, listen_after, weight, traces)
    misfits = list(options.misfits())
    if not isinstance(shuffled, bool):
        misfits.append(f"shuffled={shuffled!r} (True or False)")
    if shuffled is True and (auxiliary or traces):
        misfits.append("shuffled goes with neither auxiliary nor traces: it is the control of a plain head")
    if misfits:
        raise RecurrentError(misfits, "see help(dg.dni_in_time) for what each option means")
    return Made("shuffled" if shuffled else "dni", _refuse, options)


def _refuse(spec: CrossingSpec, context: Context, head: HeadChoice) -> Boundary:
    raise BoundaryError(
        f"'{spec.name}' is a crossing, and dni_in_time stands at a window's end, in dg.Recurrent: "
        "on a crossing the head is boundary=dg.dni(...)"
    )


def _within(value: object, most: float) -> bool:
    return is_number(value) and 0 <= value <= most
