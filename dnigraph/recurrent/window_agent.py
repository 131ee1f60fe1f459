"""One window of a recurrent network as an agent's work, and what stands at its end as a link's boundary."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..boundaries import Boundary, CrossingSpec, Visit
from ..heads.conditions import Context
from ..network.description.window_module import WindowModule
from .credit import guessed
from .layout import Layout
from .learner_factory import first_leaves
from .recurrent_error import RecurrentError
from .window import Window, make_window, run_window, window_loss

if TYPE_CHECKING:
    from .runner import Recurrent

STATE = "state"


class Span(WindowModule):
    """One window: outputs, and the state behind it in rows, from inputs and the state that was sent.

    Shapes: x, output [batch, time, ...] where `batch_first`, else [time, batch, ...]; state [batch, width]; what of a
    state carries no gradient comes as "rest_0", ..., each as the step module has it.
    """

    def __init__(self, rnn: "Recurrent", layout: Layout, batch_first: bool) -> None:
        super().__init__()
        self.core, self.batch_first = rnn.core, batch_first
        self.initial = rnn.initial if isinstance(rnn.initial, nn.Module) else None
        self._rnn, self._layout = [rnn], layout  # in a list: what it holds is no part of this module

    def forward(self, x: Any, state: Tensor | None = None, **rest: Any) -> dict[str, Any]:
        rnn, layout = self._rnn[0], self._layout
        window = self._window(x)
        first = first_leaves(self.core, layout, rnn.initial, window)
        leaves = first if state is None else self._leaves(state, rest, first)
        passed = run_window(self.core, layout, leaves, first, window, early=False)
        found = {"output": self._turned(passed.output), STATE: layout.rows(layout.live_leaves(passed.last))}
        if isinstance(rnn.loss, str):
            found["loss"] = self._share(passed.output, window)
        return found | {f"rest_{i}": leaf for i, leaf in enumerate(passed.last) if i not in layout.live}

    def loss(self, made: Mapping[str, Any], target: Any) -> Tensor | None:
        """What the window adds to the mean over a whole one.

        Raises:
            RecurrentError: the target does not fit.
        """
        output, target = self._turned(made["output"]), self._turned(target)
        shape = next(t.shape[:2] for t in pytree.tree_leaves(output) if isinstance(t, Tensor))
        misfits = [list(t.shape) for t in pytree.tree_leaves(target) if isinstance(t, Tensor) and t.shape[:2] != shape]
        length, batch = shape[self.core.time], shape[1 - self.core.time]
        if misfits:
            raise RecurrentError(
                [f"target is {wrong}, where the window has {length} steps of {batch} sequences" for wrong in misfits],
                f"the order is {self._order}",
            )
        return self._share(output, Window(None, target, None, None, None, None, length, batch))

    def _window(self, x: Any) -> Window:
        try:
            return make_window(self.core, self._rnn[0].options.horizon, self._turned(x), None, None, None, None, None)
        except RecurrentError as error:
            raise RecurrentError(error.misfits, f"the order is {self._order}") from error

    @property
    def _order(self) -> str:
        order = "[batch, time, ...]" if self.batch_first else "[time, batch, ...]"
        return f"{order}: rnn.network(..., batch_first={not self.batch_first}) asks for the other one"

    def _share(self, output: Any, window: Window) -> Tensor | None:
        rnn = self._rnn[0]
        loss, share, _ = window_loss(rnn.loss, output, window, rnn.options.horizon)
        return loss if loss is None or share == 1 else loss * share

    def _turned(self, tree: Any) -> Any:
        """From the agent's order to the core's, or back."""
        if self.batch_first == self.core.batch_first:
            return tree
        return pytree.tree_map_only(Tensor, lambda t: t.transpose(0, 1) if t.ndim > 1 else t, tree)

    def _leaves(self, state: Tensor, rest: Mapping[str, Any], first: list[Any]) -> list[Any]:
        """The leaves of a state that was sent in rows."""
        layout = self._layout
        live = dict(zip(layout.live, layout.split(state, layout.live_leaves(first)), strict=True))
        return [live[i] if i in live else rest[f"rest_{i}"] for i in range(len(first))]


class Horizon(Boundary):
    """What `Recurrent` has at a window's end: its head and all that holds it, behind the face of a boundary.

    Shapes: value [batch, width], the state in rows.
    """

    kind = "horizon"
    heeds = True

    def __init__(self, spec: CrossingSpec, context: Context, rnn: "Recurrent") -> None:
        learner = rnn.prepared()
        assert learner.estimator is not None, "it has a head"
        rows = (spec.shape[spec.batch_dim or 0], learner.layout.width)  # whatever the inputs' first axis is
        super().__init__(replace(spec, shape=rows, batch_dim=0), context)
        self.estimator = learner.estimator
        self.head_name = self.estimator.head.name
        self._rnn = [rnn]  # it knows whether sequences end

    def visit(self, value: Tensor) -> Visit:
        """The estimate, centred and capped. The target comes a window later, and `again` learns from it.

        Shapes: value [batch, width].
        """
        scale, _, cap = self._rnn[0].strengths
        view, label = self._seen(value)
        estimate = self.estimator.predict(view, label, cap)
        given = guessed(self._rnn[0].options, estimate, None, (scale, scale)).core
        now = torch.zeros_like(value) if given is None else given.to(value.dtype)
        return Visit((value,), (now,), lambda target: (None,))

    def again(self, value: Tensor) -> Visit:
        """The head's regression to the target that has come, with the weights that it has now.

        Shapes: value [batch, width].
        """
        view, label = self._seen(value)
        estimate = self.estimator.head(view, label)

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if target is None:
                return None, None
            return None, self.estimator.regress(estimate.detach(), target)[0]

        return Visit((value, estimate), (None, None), settle)

    def pass_last(self) -> None:
        """The sequences end: nothing later is worth anything to them."""
        self._rnn[0].ending = True

    @property
    def waits(self) -> bool:
        """Never."""
        return False

    @property
    def needs_label(self) -> bool:
        """Whether its head looks at one."""
        return self.estimator.head.condition is not None

    def settings(self) -> dict[str, Any]:
        """The options of the runner; a warm-up is over."""
        condition = None if self.estimator.head.condition is None else str(self.estimator.head.condition)
        options = {name: value for name, value in vars(self._rnn[0].options).items() if name != "warm_up"}
        return {"head": self.head_name, "condition": condition, **options}

    def get_extra_state(self) -> bool:
        """What the runner knows: whether sequences end."""
        return self._rnn[0].ending

    def set_extra_state(self, state: bool) -> None:
        """Go on from a checkpoint."""
        self._rnn[0].ending = state

    def _seen(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        pieces = torch.split(value.detach(), list(self.estimator.layout.widths), -1)
        return self.estimator.view_of(pieces), self.estimator.label(self.context.label, len(value))
