"""The optimisers and schedules of a decoupled model, stepped as soon as their gradients are complete."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...boundaries.head_watch import warn_frozen
from ...decoupled.module import DecoupledModule
from ...decoupled.specialization import Specialization
from ...passes.parts.boundary_nodes import key_of
from .groups import Group, Turns
from .makers import Unheld
from .misfits import optimizer_misfits
from .rules import HEADS, Rules, check_names

REST = "rest"  # the parameters of the model that no part of its first plan uses


class Updates:
    """The optimisers of a decoupled model.

    A parameter that several parts use belongs to the last of them, and waits for all of them: see `Tied`.
    """

    def __init__(self, dm: DecoupledModule, optimizer: Any, scheduler: Any = None, clip: Any = None):
        self.dm = dm
        self._choices = Rules(optimizer, scheduler, clip)
        self.groups: dict[str, Group] = {}
        self._waiting: dict[str, Any] = {}  # loaded states of groups that are not there yet
        self._boundaries = 0  # how many there were when their groups were made
        owners = _owners(dm)
        dicts = [c for c in (optimizer, scheduler, clip) if isinstance(c, Mapping)]
        check_names(dicts, [*owners, HEADS, *_boundary_groups(dm)])
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
                if tied.gather(0):
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

    @property
    def unread(self) -> list[Group]:
        """Groups of weights that no part of this step reads."""
        return self._now.unread

    def end_step(self, loss: Tensor) -> None:
        """Step what waited for no part of this step, and the schedules.

        The first are weights that no node of a graph reads: those that an autograd function of the user's finds by
        itself. Their gradients may come from any part.

        Args:
            loss: the step's, for schedules that look at it.
        """
        for group in self.unread:
            group.update()
        for group in self.groups.values():
            group.advance(loss)

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
        group = self._choices.group(name, parameters, self._named)
        if group is None:
            return
        self.groups[name] = group
        if name in self._waiting:
            group.load_state_dict(self._waiting.pop(name))

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
