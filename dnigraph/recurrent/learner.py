"""Training on one window: the core from losses and credit at its end, the head from the gradient at its start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.updates.groups import Group
from ..engine.updates.makers import Detached, Unheld
from .auxiliary import Auxiliary
from .backward import backward
from .carried_state import Place
from .core import Core
from .credit import NONE, Credit, Truth, alive, guessed, mixed
from .eligibility_traces import Traces
from .estimator import Estimator
from .input_condition import seen_after
from .layout import Layout
from .options import Options, Strengths
from .update_rules import step_groups
from .window import Forward, Loss, Window, run_window, window_loss


@dataclass(frozen=True)
class Settling:
    """The part of a stored window that learns now, where its sequences end at different windows.

    Shapes: entries bool [time, batch], the others bool [batch].
    """

    entries: Tensor  # whose losses count
    follows: Tensor  # sequences with later losses that count
    crossing: Tensor  # sequences that came from an earlier window: for them the head has a target


@dataclass
class Learned:
    """The results of one window."""

    forward: Forward
    loss: Tensor | None  # the mean over the entries that count; None: none of them do
    count: int
    view: Tensor | None = None  # the head's input after the window
    target: Tensor | None = None  # the gradient at the window's start, in rows
    metrics: dict[str, float] = field(default_factory=dict)  # of the head
    reports: dict[str, dict[str, float]] = field(default_factory=dict)  # for the user
    swept: bool = False  # stored windows have learned


class Learner:
    """The core with its head, auxiliary task, traces and optimisers. Gradients add up until `update`."""

    def __init__(self, core: Core, layout: Layout, options: Options, loss: Loss, estimator: Estimator | None) -> None:
        self.core, self.layout, self.options, self.loss, self.estimator = core, layout, options, loss, estimator
        self.groups: dict[str, Group] = {}
        self._detached = Detached()
        self.unheld = Unheld(self._core_parameters, self._held)
        self.auxiliary: Auxiliary | None = None
        self.traces: Traces | None = None
        self.windows = 0

    def _core_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.core.named_parameters("core"))

    def _held(self) -> list[nn.Parameter]:
        return [p for group in self.groups.values() for p in group.parameters]

    def window(
        self, window: Window, place: Place, first: Sequence[Any], seen: Any, strengths: Strengths,
        truth: Truth | None = None, look: bool = False, settling: Settling | None = None,
    ) -> Learned:  # fmt: skip
        """Forward and backward through one window.

        Args:
            first: leaves of the state in which sequences begin.
            seen: the head's condition after this window.
            strengths: the weights of the estimate.
            truth: the true gradient at the window's end, of a window that was stored.
            look: compute metrics.
            settling: the sequences that learn now; None: all.
        """
        layout, asks = self.layout, self._asks(place)
        leaves = [v.detach().requires_grad_(asks) if i in layout.live else v for i, v in enumerate(place.leaves)]
        inside = [v.detach().requires_grad_() if _learns(v) else v for v in first]  # for resets inside the window
        with torch.enable_grad():
            passed = run_window(self.core, layout, leaves, inside, window, self.auxiliary is not None)
            if asks:
                layout.refuse_growth(leaves, passed.last)
            loss, share, count = window_loss(self.loss, passed.output, window, self.options.horizon)
            if loss is not None:
                self._detached.look(loss, passed.output)
            total = loss if loss is None or share == 1 else loss * share
            view, estimate = self._looks_ahead(passed.last, seen, window, strengths.cap)
            credit = self._credit(estimate, window.ends, strengths, truth)
            credit = credit if settling is None else credit.only(settling.follows)
            total = self._with_auxiliary(total, passed, estimate, window.ends)
        start, last = layout.live_leaves(leaves), layout.live_leaves(passed.last)
        if self.traces is not None:
            self.traces.pass_window(place, leaves, last, start, strengths.discount)
        parameters = [*(self.groups["core"].parameters if "core" in self.groups else []), *filter(_learns, inside)]
        target = backward(total, last, start, layout, credit, parameters)
        self._first_learns(
            place.leaves, target, [(v, i.grad) for v, i in zip(first, inside, strict=True) if _learns(v)]
        )
        learned = Learned(passed, loss, count, view)
        if asks:
            target = layout.rows([torch.zeros_like(s) for s in start]) if target is None else target
            learned.target = target if place.fresh is None else target.masked_fill(place.fresh[:, None], 0.0)
        self._head_learns(place, leaves, learned, look, None if settling is None else settling.crossing)
        return learned

    def ahead(self, window: Window, place: Place, first: Sequence[Any]) -> Learned:
        """Run the window without a graph; nothing learns."""
        with torch.no_grad():
            passed = run_window(self.core, self.layout, place.leaves, first, window, early=False)
            self.layout.refuse_growth(place.leaves, passed.last)
            loss, _, count = window_loss(self.loss, passed.output, window, self.options.horizon)
        return Learned(passed, loss, count)

    def seen(self, window: Window) -> Any:
        """The head's condition after this window: a label, inputs, or None."""
        return seen_after(self.estimator, window, self.core)

    def remembered(self) -> Callable[[], None]:
        """A function that puts back what a window changes beside the gradients: counts, traces, the targets' size."""
        windows, traces = self.windows, None if self.traces is None else (self.traces.held, self.traces.jacobian)
        sizes = [] if self.estimator is None else [(b, b.clone()) for b in self.estimator.scale.buffers()]

        def put_back() -> None:
            self.windows = windows
            if self.traces is not None and traces is not None:
                self.traces.held, self.traces.jacobian = traces
            for size, before in sizes:
                size.copy_(before)

        return put_back

    def update(self, loss: Tensor | None) -> dict[str, float]:
        """Step the optimisers. Returns the norm of the core's gradient, and 1 for a step that was skipped.

        Args:
            loss: the last window's, for schedules that look at it.
        """
        norm = step_groups(self.groups, loss)
        return {"gradient_norm": norm, "skipped": float(not norm < float("inf"))}

    def _asks(self, place: Place) -> bool:
        """Whether the gradient at the window's start is needed."""
        learns = any(map(_learns, place.leaves))
        return learns or self.options.has_head or self.options.stores

    def _looks_ahead(
        self, last: Sequence[Any], seen: Any, window: Window, cap: float | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The head's input and estimate after a window; None if no loss follows."""
        if self.estimator is None or window.all_end:
            return None, None
        view = self.estimator.view(last)
        return view, self.estimator.predict(view, self.estimator.label(seen, len(view)), cap)

    def _credit(
        self, estimate: Tensor | None, ends: Tensor | None, strengths: Strengths, truth: Truth | None
    ) -> Credit:
        """The credit for all losses after the window."""
        if truth is not None:
            return mixed(self.options, estimate, truth, ends, strengths.scale)
        if estimate is None:
            return NONE
        scale = 0.0 if self.windows < self.options.head.listen_after else strengths.scale
        return guessed(self.options, estimate, ends, (scale, strengths.discount))

    def _with_auxiliary(
        self, total: Tensor | None, passed: Forward, estimate: Tensor | None, ends: Tensor | None
    ) -> Tensor | None:
        if self.auxiliary is None or self.estimator is None or estimate is None or passed.early is None:
            return total
        size = float(self.estimator.scale()) / len(estimate)
        wanted = alive(estimate, ends, self.options.head.centre) / size
        found = self.auxiliary.loss(self.estimator.attached_view(passed.early), wanted) * self.options.head.auxiliary
        return found if total is None else total + found

    def _first_learns(
        self, source: Sequence[Any], target: Tensor | None, inside: Sequence[tuple[Tensor, Tensor | None]]
    ) -> None:
        """Send gradients to first states that are learned, from the window's start and from resets inside it."""
        live = self.layout.live_leaves(source)
        pairs = list(inside)
        if target is not None:
            pairs += zip(live, self.layout.split(target, live), strict=True)
        roots = [(leaf, gradient) for leaf, gradient in pairs if leaf.requires_grad and gradient is not None]
        if roots:  # retained: it is small, and all windows of a sequence share it
            torch.autograd.backward([r for r, _ in roots], [g for _, g in roots], retain_graph=True)

    def _head_learns(
        self, place: Place, leaves: Sequence[Any], learned: Learned, look: bool, crossing: Tensor | None
    ) -> None:
        self.windows += 1
        if self.estimator is None or learned.target is None or place.behind_ends():
            return
        seen_then = place.view if place.fresh is None else None
        view = self.estimator.view(leaves) if seen_then is None else seen_then
        counted = crossing if crossing is not None else None if place.fresh is None else ~place.fresh
        label = self.estimator.label(place.seen, len(view))
        learn_from = None if self.traces is None else self.traces.learn
        learned.metrics = self.estimator.learn(view, label, learned.target, counted, learn_from, look)


def _learns(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
