"""The boundary of a recurrent network's state: its head at a window's end, as a link's boundary."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..boundaries import Boundary, CrossingSpec, Seen, Visit
from ..heads.conditions import Context
from .credit import guessed
from .estimator import Estimator
from .options import Ending, Options


class Horizon(Boundary):
    """The head of a `Recurrent` at a window's end, with its scale and its cap, as a boundary.

    Shapes: value [batch, width], the state in rows.
    """

    kind = "horizon"
    from_consumers = True
    waits = False

    def __init__(
        self, spec: CrossingSpec, context: Context, estimator: Estimator, options: Options, ending: Ending
    ) -> None:
        # In rows, whatever the first axis of the inputs is.
        rows = (spec.shape[spec.batch_dim or 0], estimator.layout.width)
        super().__init__(replace(spec, shape=rows, batch_dim=0), context)
        self.estimator = estimator
        self.head_name = self.estimator.head.name
        self.options, self.ending = options, ending

    def visit(self, value: Tensor, seen: Seen) -> Visit:
        """The estimate, centred and capped. The target comes a window later, and `again` learns from it.

        Shapes: value [batch, width].
        """
        scale, _, cap = self.options.strengths(self.ending.known)
        view, label = self._looked_at(value, seen)
        estimate = self.estimator.predict(view, label, cap)
        given = guessed(self.options, estimate, None, (scale, scale)).core
        now = torch.zeros_like(value) if given is None else given.to(value.dtype)
        return Visit((value,), (now,), lambda target: (None,))

    def again(self, value: Tensor, seen: Seen) -> Visit:
        """The head's regression to the target that has come, with the weights that it has now.

        Shapes: value [batch, width].
        """
        view, label = self._looked_at(value, seen)
        estimate = self.estimator.estimate(view, label)

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if target is None:
                return None, None
            return None, self.estimator.regress(estimate.detach(), target)[0]

        return Visit((value, estimate), (None, None), settle)

    def pass_last(self) -> None:
        """The sequences end here: no later loss depends on their state."""
        self.ending.known = True

    @property
    def needs(self) -> Collection[str]:
        """The label, where its head looks at one."""
        return frozenset() if self.estimator.head.condition is None else frozenset({"label"})

    def settings(self) -> dict[str, Any]:
        """The options of the run, but for `listen_after`, which is over."""
        condition = None if self.estimator.head.condition is None else str(self.estimator.head.condition)
        options = {name: value for name, value in self.options.plain().items() if name != "listen_after"}
        return {"head": self.head_name, "condition": condition, **options}

    def get_extra_state(self) -> bool:
        """Whether it is known that sequences end."""
        return self.ending.known

    def set_extra_state(self, state: bool) -> None:
        """Go on from a checkpoint."""
        self.ending.known = state

    def _looked_at(self, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor | None]:
        pieces = torch.split(value.detach(), list(self.estimator.layout.widths), -1)
        return self.estimator.view_of(pieces), self.estimator.label(seen.label, len(value))
