"""A recurrent model in the user's own training loop: windows of a stream, with a head's estimate at each end."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries import BoundaryChoice, Visit
from ..boundaries.exchange import exchange
from ..boundaries.watch import TrainingWarning
from ..engine.updates.makers import BARE
from ..heads import HeadChoice
from ..heads.conditions import ConditionChoice, Context
from ..passes.graph.pytrees import map_tensors
from ..passes.sandbox.snapshot import untouched
from .carried_state import Place, begin, behind
from .core import Core, Initial, check_beside, failed, make_core
from .credit import guessed
from .estimator import Estimator
from .feedback import fed_back
from .input_condition import Seen, seen_after
from .layout import Layout
from .learner_factory import choices_explained, first_leaves, layout_of, make_estimator
from .options import Options, make_options
from .recurrent_error import RecurrentError, all_at_once
from .window import Forward, Window, make_window, run_window

PLACE = {entry.name for entry in fields(Place)}


def unroll(
    step: nn.Module, x: Any, *, readout: nn.Module | None = None, feedback: Mapping[str, str | int] | None = None,
    windowed: bool = False, batch_first: bool | None = None, initial: Initial | None = None, head: HeadChoice = "auto",
    condition: "ConditionChoice | str" = None, boundary: BoundaryChoice = "dni", label: Any = None,
) -> "Unrolled":  # fmt: skip
    """A module for your own loop, with `loss.backward()` and your optimiser: `Recurrent` without the runner.

    Args:
        x: an example of a window; with `label`, where heads look at one.
        step, readout, feedback, windowed, batch_first, initial, head, condition: as in `Recurrent`.
        boundary: "dni", "silent" (truncated backprop), or `dg.dni_in_time(...)` with a `scale` that is the `discount`.

    Raises:
        RecurrentError: arguments do not fit; all of them are listed. What needs two passes through a window (true
            gradients, shuffled, traces, auxiliary, listen_after) is `Recurrent`'s alone.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1.

    Example:
        >>> rnn = dg.unroll(torch.nn.LSTM(6, 64), x, readout=torch.nn.Linear(64, 4))
        >>> optimizer = torch.optim.Adam(rnn.parameters(), 1e-3)
        >>> for x, y in stream:
        ...     loss = F.mse_loss(rnn(x), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """
    options, core, _ = all_at_once(
        lambda: _one_pass(make_options(1, boundary, "window")),
        lambda: make_core(fed_back(step, feedback), readout, windowed is True, batch_first),
        lambda: check_beside(initial, windowed, batch_first, readout),
    )
    window = make_window(core, None, x, None, None, None, None, label)
    options = replace(options, horizon=window.length)
    with choices_explained():
        layout = layout_of(core, initial, window)
        estimator = make_estimator(core, layout, options, head, condition, window)
    made = Unrolled(core, layout, options, initial, estimator)
    _try_out(made, window)
    return made


def _try_out(made: "Unrolled", window: Window) -> None:
    """Run the example, and leave the module as it was.

    Raises:
        RecurrentError: the step or the readout cannot take it.
    """
    try:
        with untouched(made), torch.no_grad():
            made(window.x, label=window.label)
    except Exception as error:
        if type(error) not in BARE:
            raise
        raise failed(made.core, window.x, made.layout.first(window.batch), error) from error


def _one_pass(options: Options) -> Options:
    """The options, if one backward pass through a window is all that they need.

    Raises:
        RecurrentError: it is not; all that ask for more are listed.
    """
    own = options.head
    given = {
        f"boundary={options.boundary!r}": options.boundary in ("bptt", "shuffled"),
        "a schedule (warm_up, refresh, blend)": options.boundary != "bptt" and options.stores,
        f"traces={own.traces}": own.traces is not None,
        f"auxiliary={own.auxiliary}": bool(own.auxiliary),
        f"listen_after={own.listen_after}": bool(own.listen_after),
        f"scale={own.scale} that is not discount={own.discount}": own.scale != own.discount,
    }
    if wrong := [name for name, asked in given.items() if asked]:
        raise RecurrentError(
            [f"{name} needs more than the one backward pass of your loop" for name in wrong],
            "leave it out; or let dg.Recurrent(...) run the windows, which owns backward and optimisers",
        )
    return options


class Unrolled(nn.Module):
    """Runs a window from the state behind the one before; in the backward pass the head's estimate joins at its end.

        state ─►[head learns]─► window ─► last state ─► carried on, detached
                      ▲            │            ▲
               gradient at start   ▼         estimate
                                outputs ─► your loss

    The estimate is that of a loss which is a mean over the batch and, as every window weighs the same, over a window's
    steps: what `Recurrent` computes with `clip=None`, bitwise, where windows are equally long. A window begins in the
    state behind the last one, whatever mode that one ran in; in eval mode, and without gradients, nothing else is done.
    The first window of sequences has nothing to teach the head: with DistributedDataParallel say
    `find_unused_parameters=True`.
    """

    def __init__(
        self, core: Core, layout: Layout, options: Options, initial: Initial | None, head: Estimator | None
    ) -> None:
        super().__init__()
        self.core, self.layout, self.options, self.initial, self.head = core, layout, options, initial, head
        self.context = Context()
        self.register_buffer("ended", torch.zeros((), dtype=torch.bool))  # whether it is known that sequences end
        self.ended: Tensor
        self._ending: bool | None = False  # the same, without waiting for its device; None: not read yet
        self._place: Place | None = None
        self._given: Any = None
        self._open = False  # whether a window waits for its backward pass

    def forward(self, x: Any, *, reset: Tensor | None = None, ends: bool | Tensor = False, label: Any = None) -> Any:
        """The outputs of a window, of any length.

        Args:
            reset: bool, one per sequence (which begin anew with this window) or one per entry.
            ends: which sequences end with this window; True: all.
            label: what the head looks at beside the state, where it has a condition.

        Shapes: [time, batch, ...], or [batch, time, ...] where the module is batch first.

        Raises:
            RecurrentError: the window does not fit; all misfits are listed.
        """
        window = make_window(self.core, self._longest, x, None, None, reset, ends, label)
        learns = self.training and torch.is_grad_enabled()
        if window.ends is not None and not self.ending:
            self.ended.fill_(True)
            self._ending = True
        if learns:
            self._tell_of_open()
        first = first_leaves(self.core, self.layout, self.initial, window)
        given = None if self._given is None else self.layout.leaves(map_tensors(Tensor.detach, self._given))
        place = begin(self.layout, self._place, given, first, window)
        spoke = self._place is not None and self._place.view is not None  # the head, at the last window's end
        leaves = self._heard(place) if learns and spoke else place.leaves
        passed = run_window(self.core, self.layout, leaves, first, window, early=False)
        self.layout.refuse_growth(place.leaves, passed.last)
        seen = seen_after(self.head, window, self.core)
        output, view = self._credited(passed, window, seen) if learns else (passed.output, None)
        self._place, self._given = behind(window, passed.last, seen, view), None
        return output

    @property
    def ending(self) -> bool:
        """Whether it is known that the sequences of this stream end: estimates count in full then."""
        if self._ending is None:
            self._ending = bool(self.ended)
        return self._ending

    @property
    def state(self) -> Any:
        """The state behind the last window, detached; None where all sequences begin anew."""
        return None if self._place is None else self.layout.state(self._place.leaves)

    def reset(self, state: Any = None) -> None:
        """All sequences begin anew with the next window, in the state that is given, else as `initial` says."""
        self._place, self._given, self._open = None, state, False

    @property
    def place(self) -> dict[str, Any] | None:
        """The place in the stream as plain data, for a checkpoint beside the `state_dict`; set it to go on there."""
        return None if self._place is None else dict(vars(self._place))

    @place.setter
    def place(self, place: Mapping[str, Any] | None) -> None:
        if not (place is None or (isinstance(place, Mapping) and set(place) == PLACE)):
            way = f"it has {', '.join(sorted(PLACE))}; rnn.reset(state) begins in a state of your own"
            raise RecurrentError([f"place={place!r} is none that rnn.place has given"], way)
        self._place, self._given = None if place is None else Place(**place), None

    @property
    def loss_scale(self) -> Any:
        """What the loss is multiplied by before its backward pass: a `GradScaler`, a number, or None."""
        return self.context.loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: Any) -> None:
        self.context.scale_by(scale)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ending = None

    @property
    def _longest(self) -> int | None:
        """The most steps that a window may have: those of the example, where the head sees inputs."""
        condition = None if self.head is None else self.head.head.condition
        return condition.horizon if isinstance(condition, Seen) else None

    def _heard(self, place: Place) -> list[Any]:
        """The leaves in which a window begins; their gradient teaches the head that saw them at the last one's end."""
        if self.head is None or place.behind_ends():
            return place.leaves
        head, layout, by = self.head, self.layout, self.context.scale()
        live = layout.live_leaves(place.leaves)
        view = head.view(place.leaves) if place.view is None or place.fresh is not None else place.view
        estimate = head.estimate(view, head.label(place.seen, len(view)))
        counted = None if place.fresh is None else ~place.fresh

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if target is None:
                return None, None
            sent = target if by is None else target / by
            sent = sent if counted is None else sent.masked_fill(~counted[:, None], 0.0)
            gradient, _ = head.regress(estimate.detach(), sent, counted)
            return target, gradient if by is None else gradient * by

        passed = exchange(Visit((layout.rows(live), estimate), None, settle), 1)
        assert isinstance(passed, Tensor), "there is one consumer"
        own = dict(zip(layout.live, layout.split(passed, live), strict=True))
        return [own[i].contiguous() if i in own else leaf for i, leaf in enumerate(place.leaves)]

    def _credited(self, passed: Forward, window: Window, seen: Any) -> tuple[Any, Tensor | None]:
        """The outputs, whose backward pass also gives the last state the head's estimate; and the head's view of it."""
        if self.head is None or window.all_end:
            return passed.output, None
        scale, _, cap = self.options.strengths(self.ending)
        view = self.head.view(passed.last)
        estimate = self.head.predict(view, self.head.label(seen, len(view)), cap)
        credit, by = guessed(self.options, estimate, window.ends, (scale, scale)).core, self.context.scale()
        rows = self.layout.rows(self.layout.live_leaves(passed.last))
        if credit is None or not rows.requires_grad:
            return passed.output, view
        given = (credit if by is None else credit * by).to(rows.dtype)
        self._open = True
        return _joined(passed.output, rows, given, self._close), view

    def _close(self) -> None:
        self._open = False

    def _tell_of_open(self) -> None:
        if self._open and self.context.tells("open"):
            warnings.warn(
                "a window begins in train mode, and the one before it has had no backward pass: its graph is kept, and "
                "until then no head learns from it. That is right where losses of several windows are summed; to look "
                "without learning, call rnn.eval() or use torch.no_grad()",
                TrainingWarning,
                stacklevel=3,
            )


def _joined(output: Any, rows: Tensor, credit: Tensor, close: Callable[[], None]) -> Any:
    """The outputs; whichever of them is gone back through first gives the rows the credit, once."""
    spent: list[int] = []  # outputs that have been gone back through

    def join(leaf: Tensor) -> Tensor:
        if not leaf.requires_grad:
            return leaf

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if id(settle) in spent:
                way = "sum the losses before one backward(); without retain_graph=True torch says so itself"
                raise RecurrentError(["a second backward pass through a window: its head would learn twice"], way)
            first = not spent
            spent.append(id(settle))
            close()
            return target, credit if first else None

        passed = exchange(Visit((leaf, rows), None, settle), 1)
        assert isinstance(passed, Tensor), "there is one consumer"
        return passed

    return map_tensors(join, output)
