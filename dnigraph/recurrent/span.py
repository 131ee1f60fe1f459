"""One window of a recurrent network as the module of an agent."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..engine.description.agent import WindowModule
from .core import Core, Initial
from .layout import Layout
from .learner_factory import first_leaves
from .recurrent_error import RecurrentError
from .window import Loss, Window, make_window, run_window, window_loss

STATE = "state"


class WindowLoss:
    """The user's loss on one window. An object of its own: a loss that is a module is no part of the agent's."""

    def __init__(self, loss: Loss, horizon: int) -> None:
        self.loss, self.horizon = loss, horizon

    @property
    def field_of_output(self) -> bool:
        """Whether the output itself holds the loss."""
        return isinstance(self.loss, str)

    def share(self, output: Any, window: Window) -> Tensor | None:
        """What the window adds to the mean over a whole one."""
        loss, share, _ = window_loss(self.loss, output, window, self.horizon)
        return loss if loss is None or share == 1 else loss * share


class Span(WindowModule):
    """One window: outputs, and the state behind it in rows, from inputs and the state that was sent.

    Shapes: x, output [batch, time, ...] where `batch_first`, else [time, batch, ...]; state [batch, width]; leaves of a
    state without gradient are sent as "rest_0", ..., in the form of the step module.
    """

    def __init__(
        self, core: Core, initial: Initial | None, layout: Layout, loss: WindowLoss, batch_first: bool
    ) -> None:
        super().__init__()
        self.core, self.initial, self.batch_first = core, initial, batch_first
        self.layout, self.window_loss = layout, loss

    def forward(self, x: Any, state: Tensor | None = None, **rest: Any) -> dict[str, Any]:
        layout = self.layout
        window = self._window(x)
        first = first_leaves(self.core, layout, self.initial, window)
        leaves = first if state is None else self._leaves(state, rest, first)
        passed = run_window(self.core, layout, leaves, first, window, early=False)
        layout.refuse_growth(leaves, passed.last)
        found = {"output": self._turned(passed.output), STATE: layout.rows(layout.live_leaves(passed.last))}
        if self.window_loss.field_of_output:
            found["loss"] = self.window_loss.share(passed.output, window)
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
        return self.window_loss.share(output, Window(None, target, None, None, None, None, length, batch))

    def _window(self, x: Any) -> Window:
        try:
            return make_window(self.core, self.window_loss.horizon, self._turned(x), None, None, None, None, None)
        except RecurrentError as error:
            raise RecurrentError(error.misfits, f"the order is {self._order}") from error

    @property
    def _order(self) -> str:
        order = "[batch, time, ...]" if self.batch_first else "[time, batch, ...]"
        return f"{order}: rnn.network(..., batch_first={not self.batch_first}) asks for the other one"

    def _turned(self, tree: Any) -> Any:
        """Swap batch and time, if the agent and the core differ in their order."""
        if self.batch_first == self.core.batch_first:
            return tree
        return pytree.tree_map_only(Tensor, lambda t: t.transpose(0, 1) if t.ndim > 1 else t, tree)

    def _leaves(self, state: Tensor, rest: Mapping[str, Any], first: list[Any]) -> list[Any]:
        """The leaves of a state from its rows."""
        layout = self.layout
        live = dict(zip(layout.live, layout.split(state, layout.live_leaves(first)), strict=True))
        return [live[i] if i in live else rest[f"rest_{i}"] for i in range(len(first))]
