"""What every boundary is, and how a value passes it in ordinary training."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from ..heads import HeadChoice
from ..heads.conditions import Condition, ConditionError, Context
from ..heads.spec import CrossingSpec
from ..passes.errors import DniGraphError
from .exchange import Visit, exchange, sum_in_order

__all__ = ["Boundary", "BoundaryError", "BoundaryFactory", "CrossingSpec", "Visit", "sum_in_order"]


class BoundaryError(DniGraphError, ValueError):
    """A boundary cannot be made or used as asked."""


class Boundary(nn.Module, ABC):
    """Passes a crossing's value on to its consumers, and hands its producer a gradient.

    Subclasses say in `visit` which gradient, and when it is known. `forward` is the same for all of them.
    """

    kind: str = "boundary"  # for the plan's table: "dni", "oracle", "local-loss"
    head_name: str | None = None  # "mlp 128"; None: it has no head
    # False for local losses, whose gradient does not depend on the consumers. True for all others: they hand down the
    # consumers' gradient or an estimate of it, so without a consumer the producer's gradient is zero.
    heeds: bool = False

    def __init__(self, spec: CrossingSpec, context: Context) -> None:
        super().__init__()
        self.spec, self.context = spec, context
        # Number of axes, the axis of features or channels, and the size of that axis: see `expect_width`.
        self._wants = (len(spec.shape), 1 if spec.kind == "maps" else -1, spec.width)

    @abstractmethod
    def visit(self, value: Tensor) -> Visit:
        """One step of this crossing. Called once for each forward pass of the producer, in train mode.

        Shapes: value [batch, ...]. Where the model keeps its batch on another axis, `meet` and `forward` move it first.
        """

    def again(self, value: Tensor) -> Visit:
        """A visit of a value that was visited before and whose target comes only now, to be settled at once.

        The weights have changed since, so a head predicts again. Does not advance counters. The default learns nothing;
        a boundary with a head must override it.
        """
        return Visit((value,), (None,), lambda target: (None,))

    def pass_last(self) -> None:
        """Called in place of `visit` when no consumer will read this value (the end of an episode)."""
        return

    @property
    def waits(self) -> bool:
        """Whether the producer may have to wait for the target in some visits."""
        return True

    @property
    def needs_label(self) -> bool:
        """Whether a visit fails where the context has no label."""
        return False

    def takes_infinite(self) -> bool:
        """Told that values are infinite, as masked scores are. Returns whether it can visit them; with weights: no."""
        return next(self.parameters(), None) is None

    def settings(self) -> dict[str, Any]:
        """What it was made with, as plain data. It must be the same where the state is loaded."""
        return {"head": self.head_name}

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, value: Tensor, consumers: int = 1) -> Tensor | tuple[Tensor, ...]:
        """The value itself, bitwise; for several consumers a tuple with one alias for each.

        In train mode the backward pass gives the producer this boundary's gradient, and the boundary learns from the
        true one. In eval mode, under `no_grad`, and for values that carry no gradient, it only passes the value on.
        Call backward once for each forward pass: sum several losses first.
        """
        if not self.learns(value):
            return value if consumers == 1 else (value,) * consumers
        passed = exchange(self._labelled_visit(self._batch_first(value)), consumers)
        at = self.spec.batch_dim
        if at == 0:
            return passed
        aliases = [passed] if isinstance(passed, Tensor) else passed
        back = tuple(alias.squeeze(0) if at is None else alias.movedim(0, at) for alias in aliases)
        return back[0] if consumers == 1 else back

    def _labelled_visit(self, value: Tensor) -> Visit:
        """`visit`. If the label is missing, the error is raised in the backward pass: the forward pass needs none."""
        try:
            return self.visit(value)
        except ConditionError as error:
            if self.context.label is not None:
                raise
            missing = error

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            raise missing

        return Visit((value,), None, settle)

    def meet(self, value: Tensor, again: bool = False) -> Visit:
        """`visit`, or `again`, for a value and targets whose batch dimension is where the model has it."""
        visit = (self.again if again else self.visit)(self._batch_first(value))
        settle = visit.settle  # not the visit: its roots keep the producer's graph alive
        return Visit(visit.roots, visit.now, lambda t: settle(None if t is None else self._batch_first(t)))

    def _batch_first(self, value: Tensor) -> Tensor:
        """The value with its batch dimension first; one without a batch dimension is a batch of one."""
        at = self.spec.batch_dim
        return value if at == 0 else value.unsqueeze(0) if at is None else value.movedim(at, 0)

    def learns(self, value: Tensor) -> bool:
        """Whether a gradient will come back for this value, so that it must be visited."""
        return self.training and value.requires_grad and torch.is_grad_enabled() and value.numel() > 0

    def label_beside(self, value: Tensor, condition: Condition) -> Tensor:
        """The label of this step, on the value's device.

        Raises:
            ConditionError: `condition` cannot read it, or it is of another batch.
        """
        label = condition.check(self.context.label, len(value) if value.ndim else None, self.spec.name)
        return label.to(value.device)

    def expect_width(self, value: Tensor) -> None:
        """Refuse a value that the networks of this crossing cannot take.

        Raises:
            BoundaryError: it has another number of axes, features or channels than the example.
        """
        spec = self.spec
        axes, at, width = self._wants
        if value.ndim == axes and (axes < 2 or value.shape[at] == width):
            return
        raise BoundaryError(
            f"boundary '{spec.name}' has a network for values like the example's, {list(spec.shape)} with {spec.width} "
            f"features, but this call makes {list(value.shape)}: cut where the width is always the same, or give this "
            f"crossing a head of your own that takes any, head={{'{spec.name}': ...}}"
        )

    @property
    def head_parameters(self) -> int:
        """Scalars in the boundary's own trainable parameters."""
        return sum(map(Tensor.numel, self.parameters()))

    def metrics(self) -> dict[str, float]:
        """How good the last settled estimate was; empty where there is none."""
        return {}

    def extra_repr(self) -> str:
        return f"{self.spec.name}, {self.kind}"


BoundaryFactory: TypeAlias = Callable[[CrossingSpec, Context, HeadChoice], Boundary]
