"""Parameters that are stepped together, and when all of their gradients are there."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ...boundaries import sum_in_order


@dataclass
class Group:
    """Parameters that are stepped together: those that a part owns, or those of a boundary."""

    name: str
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: Any
    clip: float | None

    def update(self) -> None:
        """Clip the gradients, step, and drop them."""
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.forget()

    def advance(self, loss: Tensor | None) -> None:
        """Step the schedule. One that looks at the loss waits where there is none."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if loss is not None:
                self.scheduler.step(float(loss.detach()))
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the optimiser and of its schedule, and what these are."""
        return {
            "kind": type(self.optimizer).__name__,
            "optimizer": self.optimizer.state_dict(),
            "schedule": type(self.scheduler).__name__ if self.scheduler else None,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def update_if_finite(self) -> bool:
        """`update`, unless a gradient is not finite: then all are dropped. Returns whether the parameters moved."""
        sound = finite([p.grad for p in self.parameters if p.grad is not None])
        if sound:
            self.update()
        else:
            self.forget()
        return sound

    def forget(self) -> None:
        """Drop the gradients, as `optimizer.zero_grad` does, in a tenth of its time."""
        for parameter in self.parameters:
            parameter.grad = None


class Tied:
    """A group whose parameters several parts use: it is stepped when all of them are through with the same batch.

    A part's gradients are taken off the parameters as soon as it has learned, and are added up in the order in which
    one backward pass through all parts would do it, last part first. So runners agree bitwise.

    Args:
        users: the parts, in the order in which they run.

    Attributes:
        late: how many batches later than that. Where answers come late, a number that all parts are through by makes
            the step independent of how far each of them is.
    """

    def __init__(self, group: Group, users: Sequence[str]):
        self.group, self.users, self.late = group, tuple(users), 0
        self._batches: dict[int, _Batch] = {}  # those with which not all parts are through

    def through(self, batch: int, user: str) -> None:
        """The part has learned from this batch, or will not: take the gradients that it has left."""
        seen = self._seen(batch)
        seen.users.add(user)
        for parameter in self.group.parameters:
            if parameter.grad is not None:
                seen.gradients.setdefault(parameter, {})[user] = parameter.grad
                parameter.grad = None

    def gather(self, now: int, last: bool = False) -> bool:
        """Give the parameters the gradients of all batches with which all parts are through.

        Args:
            now: the present batch.
            last: none will come after it.

        Returns whether there were such batches.
        """
        due = [batch for batch in self._batches if last or batch <= now - self.late]
        ready = [batch for batch in due if self._batches[batch].users.issuperset(self.users)]
        for seen in [self._batches.pop(batch) for batch in sorted(ready)]:
            for parameter, kept in seen.gradients.items():
                parameter.grad = sum_in_order([parameter.grad, *[kept.get(user) for user in self.users]])
        return bool(ready)

    def _seen(self, batch: int) -> "_Batch":
        return self._batches.setdefault(batch, _Batch())

    def step(self) -> bool:
        """Step with what was gathered, if that is finite. Returns whether the parameters moved."""
        return self.group.update_if_finite()

    def forget(self, waiting: Collection[tuple[int, str]] = ()) -> None:
        """Drop all gradients, but those of batches from which a part will still learn: it does so without the others.

        Args:
            waiting: batches and parts.
        """
        self.group.forget()
        for batch, seen in list(self._batches.items()):
            late = {user for number, user in waiting if number == batch}
            if late:
                seen.users = set(self.users) - late
            else:
                del self._batches[batch]


@dataclass
class _Batch:
    """What the parts that use a group have done with one batch."""

    users: set[str] = field(default_factory=set)  # those that are through
    gradients: dict[nn.Parameter, dict[str, Tensor]] = field(default_factory=dict)  # by part


@dataclass
class Turns:
    """When each group is stepped, for parts that run one after the other."""

    own: dict[str, Group]  # by the one part that they wait for
    tied: list[Tied]
    unread: list[Group]  # no part has their parameters

    @classmethod
    def of(cls, parts: Mapping[str, nn.Module], groups: Iterable[Group]) -> "Turns":
        """Who steps which group.

        Args:
            parts: in the order in which they run.
        """
        users: dict[nn.Parameter, list[str]] = {}
        for name, part in parts.items():
            for parameter in part.parameters():
                users.setdefault(parameter, []).append(name)
        turns = cls({}, [], [])
        for group in groups:
            wanted = {user for parameter in group.parameters for user in users.get(parameter, [])}
            names = [name for name in parts if name in wanted]
            if len(names) == 1 and names[0] not in turns.own:
                turns.own[names[0]] = group
            elif names:
                turns.tied.append(Tied(group, names))
            else:
                turns.unread.append(group)
        return turns


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all numbers of all tensors are finite. On an accelerator the host waits for it once."""
    if not tensors:
        return True
    plain = [(t.coalesce().values() if t.layout == torch.sparse_coo else t).detach() for t in tensors]
    plain = [torch.view_as_real(t) if t.is_complex() else t for t in plain]
    devices = {t.device for t in plain}
    if all(device.type == "cpu" for device in devices):
        total = sum(float(t.sum()) for t in plain)
    else:
        total = sum(float(torch.stack([t.sum().float() for t in plain if t.device == d]).sum()) for d in devices)
    return math.isfinite(total) or all(bool(t.isfinite().all()) for t in plain)  # a sum of large numbers overflows
