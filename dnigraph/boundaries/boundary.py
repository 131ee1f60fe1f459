"""What every boundary is, and how a value passes it in ordinary training."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from ..heads import HeadChoice
from ..heads.conditions import Condition, ConditionError, Context
from ..heads.seen import Seen
from ..heads.spec import CrossingSpec
from ..passes.errors import DniGraphError
from .accumulation import Mean
from .exchange import Visit, exchange, sum_in_order
from .schedule import Schedule, weakened
from .watch import TrainingWarning, transformed

__all__ = ["Boundary", "BoundaryError", "BoundaryFactory", "CrossingSpec", "Seen", "Visit", "sum_in_order"]


class BoundaryError(DniGraphError, ValueError):
    """A boundary cannot be made or used as asked."""


class Siblings:
    """Finds the boundaries of the model that a boundary belongs to. A copy finds none until its model has it."""

    def __init__(self, find: Callable[[], Mapping[str, Any]] = dict):
        self.find = find

    def __reduce__(self) -> tuple[type["Siblings"], tuple[()]]:
        return Siblings, ()


class Boundary(nn.Module, ABC):
    """Passes a crossing's value on to its consumers, and hands its producer a gradient.

    Subclasses say in `visit` which gradient, and when it is known; all else has a default. `forward` is the same for
    all of them. See docs/write-a-boundary.md.
    """

    kind: str = "boundary"  # for the plan's table: "dni", "oracle"; where a class says none, made of the class's name
    head_name: str | None = None  # "mlp 128"; None: it has no head
    guarded: bool = False  # whether it hands down nothing while what it would hand down is not worth learning from
    chosen: str | None = None  # what chose it: "auto"; None: the user
    # Whether what it hands down is, or stands for, the gradient of the value's consumers, so that it is nothing where
    # no consumer will ever read the value. A local loss does not ask them.
    from_consumers: bool = False
    # Whether the producer may have to wait for the target in some visits, a schedule aside. False spares networks a
    # copy of the weights.
    waits: bool = True
    # Whether the producer, where it waits for longer than a step, learns with the weights that it had then.
    stashes: bool = True
    # Whether it hands down the true gradient and nothing else, so that it may be left out where it cannot stand.
    exact: bool = False
    # Whether the gradients of its own parameters are averaged over the visits since their last update, in drop-in
    # training with several micro-batches for an update.
    averages: bool = False
    # Whether it computes with real numbers only. Of a complex value it then sees the parts: see `CrossingSpec.real`.
    real: bool = False
    schedule: Schedule | None = None  # when the true gradient comes in place of its own; None: never
    visits: Tensor  # how many there were, where they are counted: see `count_visits`
    told_frozen: bool = False  # that its parameters do not learn

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind == Boundary.kind:
            cls.kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, spec: CrossingSpec, context: Context) -> None:
        super().__init__()
        self.spec, self.context = spec.real if self.real else spec, context
        self.siblings = Siblings(context.siblings)
        # Number of axes, the axis of features or channels, and the size of that axis: see `expect_width`.
        self._wants = (len(self.spec.shape), 1 if spec.kind == "maps" else -1, self.spec.width)
        self.settled = 0  # visits of drop-in training from whose targets it has learned
        self._mean, self._own = Mean(), list[nn.Parameter]()
        self._count: int | None = 0  # `visits` without waiting for its device; None: not read yet

    def follow(self, schedule: Schedule) -> None:
        """Hand down the true gradient by a schedule, and what `visit` says in between.

        Options that are set there replace those of a schedule that it follows already.
        """
        self.schedule = schedule if self.schedule is None else schedule.over(self.schedule)
        self.count_visits()

    def count_visits(self) -> None:
        """Keep the number of visits, as a buffer: a checkpoint holds it."""
        if "visits" not in self._buffers:
            self.register_buffer("visits", torch.zeros((), dtype=torch.long, device=self.spec.device))

    @property
    def needs(self) -> Collection[str]:
        """Which of `NEEDS` it looks at: "label", "inputs", "error", "after", "neighbours". Here: none.

        Whoever runs the model says what is missing before it runs. A class may say `needs = frozenset({"label"})`.
        """
        return frozenset()

    @abstractmethod
    def visit(self, value: Tensor, seen: Seen) -> Visit:
        """One step of this crossing. Called once for each forward pass of the producer, in train mode.

        A boundary that follows a schedule is called in all visits, also where the producer gets the true gradient.

        Args:
            seen: what it declares in `needs`: the label, the model's inputs, and in `settle` the error at its outputs.

        Shapes: value [batch, ...]. Where the model keeps its batch on another axis, `meet` and `forward` move it first.
        """

    def again(self, value: Tensor, seen: Seen) -> Visit:
        """A visit of a value that was visited before and whose target comes only now, to be settled at once.

        The weights have changed since, so a head predicts again. The producer has learned: only the later roots get
        gradients, those that `settle` gives. The default is `visit`; a boundary that counts its visits itself must
        override it, since this one is no step.

        Args:
            seen: that of the first visit.
        """
        return self.visit(value, seen)

    def pass_last(self) -> None:
        """Called in place of `visit` when no consumer will read this value (the end of an episode)."""
        return

    @property
    def may_wait(self) -> bool:
        """Whether the producer may have to wait for the target in some visits, by a schedule or not."""
        return self.schedule is not None or self.waits

    @property
    def above(self) -> list["Boundary"]:
        """The boundaries on what this value's consumers make, once all are made. Needs "neighbours"."""
        return self._called(self.spec.above)

    @property
    def below(self) -> list["Boundary"]:
        """The boundaries on what this value's producer reads. Needs "neighbours"."""
        return self._called(self.spec.below)

    def _called(self, names: Iterable[str]) -> list["Boundary"]:
        boundaries = self.siblings.find()
        return [boundaries[name] for name in names if name in boundaries]

    def is_nothing(self, target: Tensor | None) -> bool:
        """Whether it learns nothing from a target."""
        return target is None

    def takes_infinite(self) -> bool:
        """Told that values are infinite, as masked scores are. Returns whether it can visit them; with weights: no."""
        return next(self.parameters(), None) is None

    @property
    def title(self) -> str:
        """Its kind, and what else the plan's table says of it: "dni (auto, guarded)"."""
        more = [self.chosen] if self.chosen else []
        more += ["guarded"] if self.guarded else []
        return f"{self.kind} ({', '.join(more)})" if more else self.kind

    def settings(self) -> dict[str, Any]:
        """What it was made with, as plain data, a schedule aside. It must be the same where the state is loaded."""
        return {"head": self.head_name}

    def all_settings(self) -> dict[str, Any]:
        """`settings`, and the schedule's."""
        return {**asdict(self.schedule or Schedule()), **self.settings()}

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, value: Tensor, consumers: int = 1) -> Tensor | tuple[Tensor, ...]:
        """The value itself, bitwise; for several consumers a tuple with one alias for each.

        In train mode the backward pass gives the producer this boundary's gradient, and the boundary learns from the
        true one. In eval mode, under `no_grad`, and for values that carry no gradient, it only passes the value on.
        Call backward once for each forward pass: sum several losses first.
        """
        if transformed():
            self.leave_out()
        if transformed() or not self.learns(value):
            return value if consumers == 1 else (value,) * consumers
        passed = exchange(self._in_drop_in(self._labelled_visit(self._batch_first(value))), consumers)
        at = self.spec.batch_dim
        if at == 0:
            return passed
        aliases = [passed] if isinstance(passed, Tensor) else passed
        back = tuple(alias.squeeze(0) if at is None else alias.movedim(0, at) for alias in aliases)
        return back[0] if consumers == 1 else back

    def _labelled_visit(self, value: Tensor) -> Visit:
        """`visit`. If the label is missing, the error is raised in the backward pass: the forward pass needs none."""
        if self.context.label is not None or "label" not in self.needs:
            return self._next_visit(value)
        missing = no_label(self.siblings.find() or {self.spec.name: self})

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            raise missing

        return Visit((value,), None, settle)

    def _next_visit(self, value: Tensor) -> Visit:
        """`visit`, with the true gradient where the schedule says so."""
        if "visits" not in self._buffers:
            return self._in_parts(self.visit, value)
        before = int(self.visits) if self._count is None else self._count
        self._count = before + 1
        share = 0.0 if self.schedule is None else self.schedule.share(before + 1)
        # A local loss reaches the producer through its own root, the value: that share is what is left of it.
        own = value if not share else value.detach().requires_grad_() if share == 1 else weakened(value, 1 - share)
        try:
            visit = self._in_parts(self.visit, own)
        except BaseException:
            self._count = before  # it was none
            raise
        self.visits += 1
        if not share:
            return visit
        gradients = Visit((), visit.now, visit.settle).gradients

        def settle(target: Tensor | None) -> tuple[Tensor | None, ...]:
            first, *later = gradients(target)
            if target is None or share == 1:
                return (target, *later)
            mixed = target * share if first is None else torch.lerp(first, target.to(first.dtype), share)
            return (mixed, *later)

        return Visit((value, *visit.roots[1:]), None, settle)

    def _in_parts(self, visit: Callable[[Tensor, Seen], Visit], value: Tensor) -> Visit:
        """What `visit` says of a value; of a complex one, if it takes real numbers, what it says of the parts."""
        spec, shape = self.spec, value.shape
        if not spec.of_complex:
            return visit(value, self.context.seen)
        own = visit(spec.parts(value), self.context.seen)
        settle = own.settle

        def joined(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            first, *later = gradients
            return (None if first is None else spec.joined(first, shape), *later)

        def settle_in_parts(target: Tensor | None) -> tuple[Tensor | None, ...]:
            return joined(settle(None if target is None else spec.parts(target)))

        now = None if own.now is None else joined(own.now)
        return Visit((value, *own.roots[1:]), now, settle_in_parts)

    def leave_out(self) -> None:
        """See that the model may run without this boundary, where there is no place for another gradient.

        Raises:
            BoundaryError: in train mode it hands down another gradient than the true one.
        """
        if not self.training or not torch.is_grad_enabled() or self.exact:
            return
        raise BoundaryError(
            f"boundary '{self.spec.name}' ({self.kind}) stands in train mode under a transform of torch.func, or in "
            "forward-mode differentiation. They know one gradient, the true one, and this boundary hands down another: "
            "for true derivatives call dm.eval() before, or take the model itself, dm.recouple()"
        )

    def _in_drop_in(self, visit: Visit) -> Visit:
        """The visit with the mean of accumulated gradients, and what is told."""
        settle = visit.settle

        def settle_in_backward(target: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled() and not self.exact:
                self._tell_of_graph()
            if not self.is_nothing(target):
                if self.averages:
                    with torch.no_grad():
                        self._mean.settled(self.own_parameters(anew=self.settled % 16 == 0))
                self.settled += 1
            return settle(target)

        return Visit(visit.roots, visit.now, settle_in_backward)

    def own_parameters(self, anew: bool = False) -> list[nn.Parameter]:
        """The parameters of this boundary, as they were when this was last asked `anew`."""
        if anew or not self._own:
            self._own = list(self.parameters())
        return self._own

    def _tell_of_graph(self) -> None:
        if self.context.tells("create_graph"):
            warnings.warn(
                f"create_graph=True through boundary '{self.spec.name}' ({self.kind}): below it the gradient is what "
                "the boundary hands down, a constant for a second differentiation, so that a gradient penalty "
                "penalises the parts above it alone. Compute the penalty with dm.recouple(), or with boundary='oracle'",
                TrainingWarning,
                stacklevel=2,
            )

    def meet(self, value: Tensor, again: bool = False) -> Visit:
        """`visit`, or `again`, for a value and targets whose batch dimension is where the model has it."""
        value = self._batch_first(value)
        visit = self._in_parts(self.again, value) if again else self._next_visit(value)
        settle = visit.settle  # not the visit: its roots keep the producer's graph alive
        return Visit(visit.roots, visit.now, lambda t: settle(None if t is None else self._batch_first(t)))

    def _batch_first(self, value: Tensor) -> Tensor:
        """The value with its batch dimension first; one without a batch dimension is a batch of one."""
        at = self.spec.batch_dim
        return value if at == 0 else value.unsqueeze(0) if at is None else value.movedim(at, 0)

    def learns(self, value: Tensor) -> bool:
        """Whether a gradient will come back for this value, so that it must be visited."""
        return self.training and value.requires_grad and torch.is_grad_enabled() and value.numel() > 0

    def label_beside(self, value: Tensor, label: Any, condition: Condition) -> Tensor:
        """The label of a step, on the value's device.

        Raises:
            ConditionError: `condition` cannot read it, or it is of another batch.
        """
        checked = condition.check(label, len(value) if value.ndim else None, self.spec.name)
        return checked.to(value.device)

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

    def measured(self) -> Callable[[], dict[str, float]]:
        """What `metrics` returns now, to be read later: on an accelerator a read waits for the device."""
        metrics = self.metrics()
        return lambda: metrics

    def measure_next(self) -> None:
        """Ask that the next visit be measured, where not each is."""
        return

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._count = None

    def extra_repr(self) -> str:
        return f"{self.spec.name}, {self.kind}"


BoundaryFactory: TypeAlias = Callable[[CrossingSpec, Context, HeadChoice], Boundary]


def no_label(boundaries: Mapping[str, Boundary]) -> ConditionError:
    """What is said where boundaries look at the label, and there is none: it names all of them."""
    names = [name for name, boundary in boundaries.items() if "label" in boundary.needs]
    listed = ", ".join(f"'{name}'" for name in names)
    return ConditionError(
        f"{'boundary' if len(names) == 1 else 'boundaries'} {listed} {'looks' if len(names) == 1 else 'look'} at the "
        "label: run the forward pass inside `with dm.conditioned(label):`, or give run.step(...) a target= or a label="
    )
