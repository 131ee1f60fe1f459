"""The decoupled neural interface: a head predicts the gradient, and learns from the one that comes later."""

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..heads import HeadChoice, make_head
from ..heads.conditions import Context
from ..heads.head import Foreign
from ..heads.layers import GAIN
from ..passes.errors import is_number, is_whole
from .boundary import Boundary, CrossingSpec, Seen, Visit
from .guard import OPENS, Guard
from .regression import Comparison, compare
from .replay import Replay
from .scale import RunningScale
from .watch import MEASUREMENTS, HeadHistory, TrainingWarning

MEASURED = 8  # visits from one measurement of the estimate to the next, unless they are read: two passes over it
STANDS = 25  # judgements in a row, each of `MEASURED` visits, after which a closed guard is told of: 200 visits
NOTHING = 1e15  # larger values are masked scores, not numbers to learn from: their squares would not be finite


@dataclass(frozen=True)
class Options:
    """The options of `dni(...)`."""

    replay: int = 0  # earlier batches from which the head learns again in every step
    decay: float = 0.99  # of the running scale
    guard: bool | None = (
        None  # the producer learns only while the estimates explain enough; None: on cuts, not on links
    )

    def misfits(self) -> list[str]:
        """A line for each option that is out of its range."""
        lines = [] if is_whole(self.replay) else [f"replay={self.replay!r} (a whole number from 0 on)"]
        if not isinstance(self.guard, bool | None):
            lines.append(f"guard={self.guard!r} (True, False, or None: on cuts, not on links that are wired by hand)")
        if not is_number(self.decay) or not 0 <= self.decay < 1:
            lines.append(f"decay={self.decay!r} (from 0 to less than 1)")
        return lines


class Dni(Boundary):
    """Gives the producer its head's prediction at once; the head learns from the true gradient when that comes.

        estimate        M(value, label)                              once per step, in units of GAIN times the scale
        producer gets   estimate * GAIN * scale / batch              before the target is known
        head learns     mean((estimate - target * batch / (GAIN * scale'))^2)    after that; scale' includes it

    While the estimates explain too little of the targets, the producer gets no gradient: see `Guard`.

    A head sees gradients per sample (the mean over the batch undone) and in units of their running size, so one
    learning rate serves all batch sizes, widths and depths. `GAIN` makes it learn faster than the model: see `Head`.

    Shapes: value [batch, *features].

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2 and supplement A (BP(lambda)).
    """

    kind = "dni"
    from_consumers = True
    waits = False
    averages = True
    real = True

    def __init__(self, spec: CrossingSpec, context: Context, head: HeadChoice = "auto", options: Options | None = None):
        super().__init__(spec, context)
        self.options = options or Options()
        self.head = make_head(head, self.spec)
        self.head_name = self.head.name
        self.scale = RunningScale(self.options.decay).to(spec.device)
        self.replay = Replay(self.options.replay) if self.options.replay else None
        self.guarded = not spec.wired if self.options.guard is None else self.options.guard
        self.guard = Guard(self.spec.kind == "maps").to(spec.device) if self.guarded else None
        self.count_visits()
        self._seen: Comparison | None = None
        self._asked = False  # whether the next visit is to be measured
        self._history = HeadHistory()
        self._closed = 0  # judgements in a row that found the guard closed
        self._masks = False  # whether there was a value beyond `NOTHING`
        self._sample = list(self.head.parameters())[:1]  # for the head's dtype; in a list, so that it stays the head's

    @property
    def needs(self) -> Collection[str]:
        """The label, where its head looks at it."""
        return frozenset() if self.head.condition is None else frozenset({"label"})

    def takes_infinite(self) -> bool:
        """Yes: the head sees 0 in their place."""
        self._masks = True
        return True

    def settings(self) -> dict[str, Any]:
        """Its head, the head's condition, and the options of `dni`."""
        condition = None if self.head.condition is None else str(self.head.condition)
        return {"head": self.head_name, "condition": condition, **vars(self.options), "guard": self.guarded}

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        if not isinstance(self.head, Foreign):
            self.expect_width(value)
        batch = len(value) if value.ndim else 1
        label = None if self.head.condition is None else self.label_beside(value, seen.label, self.head.condition)
        estimate = self._estimate(value.detach(), label)
        by = self.context.scale()  # the loss is multiplied by it, and so are all gradients
        if isinstance(by, Tensor):
            by = by.to(value.device)
        gradient = estimate.detach() * (self.scale() * (GAIN / batch))
        gradient = (gradient if by is None else gradient * by).to(value.dtype)
        handed = gradient if self.guard is None or self.guard.open else None
        again = None if self.replay is None else self.replay.loss(self._estimate)

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if target is None or self.is_nothing(target):
                if self.guard is not None:
                    self.guard.nothing_came(self._count or 0)
                return (None,) * len(roots)
            with torch.no_grad():
                sent = target if by is None else target.to(estimate.dtype) / by
                error = self._compare(estimate.detach(), sent, batch, value.detach())
                if self.replay is not None and value.ndim:
                    self.replay.remember(value.detach(), label, estimate.detach() - error)
            ones = () if again is None else (torch.ones_like(again),)
            own = (error.mul_(2 / error.numel()), *ones)
            return None, *[gradient if by is None else gradient.mul_(by) for gradient in own]

        roots = (value, estimate) if again is None else (value, estimate, again)
        return Visit(roots, (handed, *[None] * (len(roots) - 1)), settle)

    def is_nothing(self, target: Tensor | None) -> bool:
        """Zeros are what is left of none where a function of the user's is differentiated below a closed guard."""
        if target is None:
            return True
        if self.guard is None or target.device.type != "cpu" or not target.numel():
            return False
        return not bool(target[(0,) * target.ndim]) and not bool(target.any())  # mostly the first number says it

    def metrics(self) -> dict[str, float]:
        """Of the last visit that was measured: the cosine of estimate and target, the squared error relative to the
        target's square (1: as bad as saying nothing), and the target's root mean square per sample. Empty where the
        target was zero or not finite. Beside them, of a guard, the running means that `Guard.measured` has.

        The first visit is measured, the next one after each read of this, and every `MEASURED`-th: who reads after
        every step has that step's numbers.
        """
        return self.measured()()

    def measured(self) -> Callable[[], dict[str, float]]:
        seen, self._asked = self._seen, True
        guarded = dict if self.guard is None else self.guard.measured()
        return lambda: {} if seen is None or not seen.metrics else {**seen.metrics, **guarded()}

    def measure_next(self) -> None:
        self._asked = True

    @property
    def _judges(self) -> bool:
        """Whether this is one of the visits in which numbers are read."""
        return (self._count or 0) % MEASURED == 0

    @property
    def _warm_up(self) -> int:
        return 0 if self.schedule is None else self.schedule.warm_up

    def _estimate(self, value: Tensor, label: Tensor | None) -> Tensor:
        """The head's prediction, in the head's own precision also where the model runs under autocast."""
        value = value.to(self._sample[0].dtype) if self._sample else value
        if self._masks or (self._count or 0) % MEASURED == 1:
            value = self._unmasked(value)
        if not torch.is_autocast_enabled(value.device.type):
            return self.head(value, label)  # type: ignore[no-any-return]
        with torch.autocast(value.device.type, enabled=False):
            return self.head(value, label)  # type: ignore[no-any-return]

    def _unmasked(self, value: Tensor) -> Tensor:
        """The value with 0 in place of masked scores."""
        if not self._masks and value.numel():
            self._masks = bool(value.abs().amax() > NOTHING)
        return value.masked_fill(value.abs() > NOTHING, 0) if self._masks else value

    def _compare(self, estimate: Tensor, target: Tensor, batch: int, value: Tensor) -> Tensor:
        """The error of `regression.compare`. What is seen of it is measured, and judged, every `MEASURED` visits."""
        error, size, inverse = compare(self.scale, estimate, target, batch, GAIN)
        judged = self._judges and (self._count or 0) > self._warm_up
        if self.guard is not None:
            self.guard.look(error, estimate, self._unmasked(value) if self._masks else value, size, self._count or 0)
        if self._asked or judged or self._seen is None:
            norms = torch.linalg.vector_norm(estimate), torch.linalg.vector_norm(error)
            self._seen, self._asked = Comparison(size, *norms, inverse, batch, target.numel(), GAIN), False
        if judged and self.guard is not None:
            self._closed = 0 if self.guard.open else self._closed + 1
            if self._closed == STANDS:
                self._tell_of_guard(self.guard)
        elif judged and (wrong := self._history.error(self._seen.relative_error())) is not None:
            self._tell_of_error(wrong)
        if self.settled and self.context.loss_scale is None:  # in drop-in training, where losses may be scaled
            norm = size if isinstance(inverse, Tensor) else float(size)
            if self._history.target(norm, batch, target.numel()):
                self._tell_of_jump()
        return error

    @property
    def _way_to_the_label(self) -> str:
        return "" if self.head.condition else "condition=dg.one_hot(classes), so that the head sees the label; "

    def _tell_of_guard(self, guard: Guard) -> None:
        if self.context.tells(f"guard of {self.spec.name}"):
            explained, of_weights = (max(0.0, 1 - missed) for missed in guard.missed.tolist())
            warnings.warn(
                f"the head on '{self.spec.name}' explains {explained:.0%} of the gradient, and {of_weights:.0%} of "
                "what it sums up to in the weights, so that the part below stands still, as with boundary='silent': to "
                f"follow it would do harm. The head learns on, and the part moves from {OPENS[0]:.0%} and "
                f"{OPENS[1]:.0%} on. What helps: {self._way_to_the_label}a warm-up, boundary=dg.dni(warm_up=200); or "
                "boundary='local-loss'. boundary=dg.dni(guard=False) follows the head in any case",
                TrainingWarning,
                stacklevel=2,
            )

    def _tell_of_error(self, error: float) -> None:
        if self.context.tells(f"error of {self.spec.name}"):
            label = self._way_to_the_label
            warnings.warn(
                f"the head on '{self.spec.name}' is worse than one that says nothing: over the last "
                f"{MEASURED * MEASUREMENTS} steps its squared error is {error:.1f} times the square of the true "
                f"gradient. What helps: {label}a smaller learning rate for the heads; a warm-up, "
                "boundary=dg.dni(warm_up=200); or boundary='local-loss'. Compare with the control, "
                "boundary=dg.silent(), before you believe a curve",
                TrainingWarning,
                stacklevel=2,
            )

    def _tell_of_jump(self) -> None:
        if self.context.tells("jump"):
            warnings.warn(
                f"the gradients that come back to boundary '{self.spec.name}' have another size since a few steps, by "
                "a factor of about two or more. If the loss is scaled (a GradScaler that has changed its scale), the "
                "layers below are wrong by that factor until the head has learned it: tell the model of the scale, "
                "dm.loss_scale = scaler, and such a change is exact at once",
                TrainingWarning,
                stacklevel=2,
            )
