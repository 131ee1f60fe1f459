"""The head at a window's end: its view of the state, its estimate, its regression."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries.regression import Comparison, compare
from ..boundaries.scale import RunningScale
from ..heads import CrossingSpec, HeadChoice, make_head
from ..heads.conditions import ConditionChoice, ConditionError
from .dni_in_time import InTime
from .layout import Layout


class Estimator(nn.Module):
    """Predicts the gradient of all later losses with respect to a state, for all its tensors together.

        state ─► leaves that are not bounded: tanh ─► side by side ─► head ─► within ± cap ─► x size of the targets

    The head works per sample (the mean over the batch undone) and in units of the targets' running size, and learns
    `gain` times as fast as the core under the same optimiser. With the raw c of an LSTM as
    its input, a head diverged in a long stream; tanh and the cap prevent that.

    Shapes: rows and estimates [batch, width].

    Source: Jaderberg et al. 2017, arXiv 1608.05343, section 2.1.
    """

    def __init__(
        self,
        layout: Layout,
        options: InTime,
        like: Tensor,
        head: HeadChoice,
        condition: ConditionChoice,
        bounded: tuple[bool, ...] | None,
    ) -> None:
        super().__init__()
        self.layout, self.options, self.bounded = layout, options, bounded
        dtype = torch.promote_types(like.dtype, torch.float32)  # a head cannot learn in half precision
        spec = CrossingSpec("horizon", (2, layout.width), dtype, like.device, condition)
        self.spec = spec
        self.head = make_head(head, spec).to(dtype)
        self.scale = RunningScale(options.decay).to(like.device)

    def view(self, leaves: Sequence[Any]) -> Tensor:
        """The head's input from the leaves of a state, detached. Shapes: -> [batch, width]."""
        return self.attached_view([v.detach() if isinstance(v, Tensor) else v for v in leaves])

    def attached_view(self, leaves: Sequence[Any]) -> Tensor:
        """The same with the graph of the state."""
        return self.view_of(self.layout.pieces(self.layout.live_leaves(leaves)))

    def view_of(self, pieces: Sequence[Tensor]) -> Tensor:
        """The head's input from pieces, one for each live leaf."""
        bounded = self.bounded or (False,) * len(pieces)
        seen = [p if calm else p.tanh() for p, calm in zip(pieces, bounded, strict=True)]
        return torch.cat(seen, -1).to(self.spec.dtype)

    def label(self, label: Any, batch: int) -> Tensor | None:
        """The label in the form that the head takes.

        Raises:
            ConditionError: it is missing or does not fit.
        """
        condition = self.head.condition
        if condition is not None and label is None:
            raise ConditionError(
                "the head at a window's end looks at a label, and there is none: give step or run label="
            )
        return None if condition is None else condition.check(label, batch, "horizon")

    def estimate(self, view: Tensor, label: Tensor | None) -> Tensor:
        """What the head says, in units of the targets' size, in its own precision also under autocast."""
        if not torch.is_autocast_enabled(view.device.type):
            return self.head(view, label)  # type: ignore[no-any-return]  # a module call
        with torch.autocast(view.device.type, enabled=False):
            return self.head(view, label)  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(self, view: Tensor, label: Tensor | None, cap: float | None) -> Tensor:
        """The estimate as a gradient of a loss that is a mean over the batch."""
        estimate = self.estimate(view, label)
        if cap is not None:
            most = cap / self.options.gain
            estimate = estimate.clamp(-most, most)
        found: Tensor = estimate * (self.scale() * (self.options.gain / len(view)))
        return found

    def learn(
        self,
        view: Tensor,
        label: Tensor | None,
        target: Tensor,
        counted: Tensor | None,
        learn_from: Callable[[Tensor], None] | None = None,
        look: bool = False,
    ) -> dict[str, float]:
        """Add the gradients of the regression to `target` to the head. Returns metrics where `look` asks for them.

        Args:
            target: the gradient that came back, of a loss that is a mean over the batch.
            counted: the sequences that have a target; None: all.
            learn_from: takes the gradient of the regression, in place of the head's own graph (`Traces.learn`).
        """
        if counted is not None and not bool(counted.any()):
            return {}
        with torch.enable_grad():
            estimate = self.estimate(view, label)
        gradient, compared = self.regress(estimate.detach(), target, counted)
        if learn_from is not None:
            learn_from(gradient)
        elif estimate.requires_grad:
            torch.autograd.backward(estimate, gradient)
        return compared().metrics if look else {}

    def regress(
        self, estimate: Tensor, target: Tensor, counted: Tensor | None = None
    ) -> tuple[Tensor, Callable[[], Comparison]]:
        """The gradient of the regression with respect to the head's estimate, and what its metrics are made of.

        Updates the running scale.
        """
        rows = (estimate, target) if counted is None else (estimate[counted], target[counted])
        error, size, inverse = compare(self.scale, *rows, batch=len(target), gain=self.options.gain)

        def compared() -> Comparison:
            norms = torch.linalg.vector_norm(rows[0]), torch.linalg.vector_norm(error)
            return Comparison(size, *norms, inverse, len(target), error.numel(), self.options.gain)

        gradient = error * (2 / error.numel())
        if counted is not None:
            gradient = torch.zeros_like(estimate).masked_scatter_(counted[:, None], gradient)
        return gradient, compared
