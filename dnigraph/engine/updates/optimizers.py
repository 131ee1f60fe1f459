"""Optimisers and schedules, one for each part and boundary, stepped as soon as their gradients are complete."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ...boundaries import sum_in_order
from ...boundaries.head_watch import warn_frozen
from ...decoupled.module import DecoupledModule
from ...decoupled.specialization import Specialization
from ...passes.errors import DniGraphError, nearest
from ...passes.parts.boundary_nodes import key_of
from .makers import Unheld, make_optimizer
from .misfits import optimizer_misfits

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]
REST = "rest"  # the parameters of the model that no part of its first plan uses
HEADS = "heads"  # in a user's dict of optimisers, the key for all boundaries


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
    """

    def __init__(self, group: Group, users: Sequence[str]):
        self.group, self.users = group, tuple(users)
        self._batches: dict[int, _Batch] = {}  # those with which not all parts are through

    def through(self, batch: int, user: str) -> None:
        """The part has learned from this batch, or will not: take the gradients that it has left."""
        seen = self._batches.setdefault(batch, _Batch())
        seen.users.add(user)
        for parameter in self.group.parameters:
            if parameter.grad is not None:
                seen.gradients.setdefault(parameter, {})[user] = parameter.grad
                parameter.grad = None

    def gather(self) -> bool:
        """Give the parameters the gradients of all batches with which all parts are through.

        Returns whether there were such batches.
        """
        ready = [batch for batch, seen in self._batches.items() if seen.users.issuperset(self.users)]
        for seen in [self._batches.pop(batch) for batch in sorted(ready)]:
            for parameter, kept in seen.gradients.items():
                parameter.grad = sum_in_order([parameter.grad, *[kept.get(user) for user in self.users]])
        return bool(ready)

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


class Updates:
    """The optimisers of a decoupled model.

    A parameter that several parts use belongs to the last of them, and waits for all of them: see `Tied`.
    """

    def __init__(self, dm: DecoupledModule, optimizer: Any, scheduler: Any = None, clip: Any = None):
        self.dm = dm
        self._choices = optimizer, scheduler, clip
        self.groups: dict[str, Group] = {}
        self._waiting: dict[str, Any] = {}  # loaded states of groups that are not there yet
        self._boundaries = 0  # how many there were when their groups were made
        owners = _owners(dm)
        check_names([c for c in self._choices if isinstance(c, Mapping)], [*owners, HEADS, *_boundary_groups(dm)])
        for name, parameters in owners.items():
            self._add(name, parameters)
        self._add_boundaries()
        self._unheld = Unheld(dm.original.named_parameters, self._parameters)
        self._turns: dict[int, tuple[Specialization, Turns]] = {}  # by the identity of the specialization
        self._now: Turns
        self._memory: frozenset[int | None] | None = None  # where the parameters lie; None: not looked up in this step

    def begin(self, specialization: Specialization) -> None:
        """Start a step through these parts, without gradients."""
        self._add_boundaries()
        new = id(specialization) not in self._turns
        self._unheld.look(soon=new, stacklevel=5)
        if new:
            own = [group for name, group in self.groups.items() if not name.startswith("dni.")]
            self._turns[id(specialization)] = specialization, Turns.of(specialization.parts, own)
        self._now, self._memory = self._turns[id(specialization)][1], None
        for group in self.groups.values():
            group.forget()
        for tied in self._now.tied:
            tied.forget()

    def part_done(self, part: str) -> None:
        """A part has its gradients: step the groups that have all of theirs now."""
        if group := self._now.own.get(part):
            group.update()
        for tied in self._now.tied:
            if part in tied.users:
                tied.through(0, part)
                if tied.gather():
                    tied.group.update()

    def moves(self, value: Tensor) -> bool:
        """Whether an update of a parameter would change this value, since it is a view of one."""
        if self._memory is None:
            self._memory = frozenset(_memory(p) for p in self._parameters())
        return _memory(value) in self._memory

    def boundary_done(self, name: str) -> None:
        """A boundary has its gradients: step its group."""
        if group := self.groups.get(f"dni.{name}"):
            group.update()

    def end_step(self, loss: Tensor) -> None:
        """Step what waited for no part of this step, and the schedules.

        The first are weights that no node of a graph reads: those that an autograd function of the user's finds by
        itself. Their gradients may come from any part.

        Args:
            loss: the step's, for schedules that look at it.
        """
        for group in self._now.unread:
            group.update()
        for group in self.groups.values():
            if isinstance(group.scheduler, ReduceLROnPlateau):
                group.scheduler.step(float(loss))
            elif group.scheduler is not None:
                group.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all optimisers and schedules, by group."""
        return {name: group.state_dict() for name, group in self.groups.items()} | self._waiting

    def misfits(self, state: Mapping[str, Any], late: Collection[str]) -> list[str]:
        """Why `load_state_dict` could not load this state; empty where it can.

        Args:
            late: keys of boundaries that the state or this model may lack.
        """
        self._add_boundaries()
        misfits = []
        for name in sorted(state.keys() | self.groups.keys()):
            if (name in state) != (name in self.groups) and key_of(name.removeprefix("dni.")) in late:
                continue
            if name not in state:
                misfits.append(f"{name}: it has no optimiser of it; were the cuts others?")
            elif name not in self.groups:
                misfits.append(f"{name}: this model has nothing of this name; were the cuts others?")
            else:
                misfits += optimizer_misfits(
                    name, self.groups[name].optimizer, self.groups[name].scheduler, state[name]
                )
        return misfits

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, and in which there are no `misfits`.

        States of boundaries that no call has made yet are kept for then.
        """
        self._waiting = {name: saved for name, saved in state.items() if name not in self.groups}
        for name, group in self.groups.items():
            if name in state:
                group.load_state_dict(state[name])

    def _add_boundaries(self) -> None:
        """Make groups for boundaries that have none: a call on a new path through the model may have added some."""
        boundaries = self.dm.boundaries
        if len(boundaries) == self._boundaries:
            return
        self._boundaries = len(boundaries)
        for name, boundary in boundaries.items():
            if f"dni.{name}" not in self.groups:
                self._add(f"dni.{name}", list(boundary.parameters()))
        warn_frozen(boundaries.values(), stacklevel=5)

    def _add(self, name: str, parameters: list[nn.Parameter]) -> None:
        trained = [p for p in parameters if p.requires_grad]
        if not trained:
            return
        make, schedule, clip = (chosen(choice, name) for choice in self._choices)
        if make is None:
            raise DniGraphError(f"no optimiser is named for {name}; add an entry '*' for the rest")
        optimizer = make_optimizer(make, trained, name, self._named)
        self.groups[name] = Group(name, trained, optimizer, schedule(optimizer) if schedule else None, clip)
        if name in self._waiting:
            self.groups[name].load_state_dict(self._waiting.pop(name))

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.groups.values() for p in group.parameters]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters of the model and of the heads, by name."""
        yield from self.dm.original.named_parameters()
        for name, boundary in self.dm.boundaries.items():
            yield from boundary.named_parameters(f"dni.{name}")


def _owners(dm: DecoupledModule) -> dict[str, list[nn.Parameter]]:
    """Each part's own parameters, and the rest of the model's."""
    owner: dict[nn.Parameter, str] = {}
    for name, part in dm.parts.items():
        owner |= dict.fromkeys(part.parameters(), name)
    owned: dict[str, list[nn.Parameter]] = {name: [] for name in dm.parts}
    owned[REST] = []
    for parameter in dm.model_parameters():
        owned[owner.get(parameter, REST)].append(parameter)
    return owned


def _memory(tensor: Tensor) -> int | None:
    """Where the numbers of a tensor begin; None where they are not in one place."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None


def _boundary_groups(dm: DecoupledModule) -> list[str]:
    return [f"dni.{name}" for name in dm.boundaries]


def chosen(choice: Any, name: str) -> Any:
    """The user's choice for the group of this name: the choice itself, or the entry of a dict that fits."""
    if not isinstance(choice, Mapping):
        return choice
    names = [name, HEADS] if name.startswith("dni.") else [name]
    for known in names:
        if known in choice:
            return choice[known]
    return next((v for pattern, v in choice.items() if any(fnmatchcase(n, pattern) for n in names)), None)


def check_names(choices: list[Mapping[str, Any]], names: list[str]) -> None:
    """Check that every key of such dicts fits a part or a boundary.

    Raises:
        DniGraphError: some fit none; all of them are listed.
    """
    strange = [k for choice in choices for k in choice if not any(fnmatchcase(name, k) for name in names)]
    if strange:
        listed = ", ".join(f"{key!r}{nearest(key, names)}" for key in strange)
        raise DniGraphError(f"no part or boundary is called {listed}; there are {', '.join(names)}")
