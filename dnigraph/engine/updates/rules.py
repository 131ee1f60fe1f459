"""What the user chose for groups of parameters, by name: optimisers, schedules, the largest norms of gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ...passes.errors import DniGraphError, nearest
from .groups import Group
from .makers import Named, make_optimizer

HEADS = "heads"  # in a user's dict, the key for all boundaries

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], Any]


@dataclass(frozen=True)
class Rules:
    """Each is one for all groups, or a dict from names or globs to some, with "*" for the rest.

    Args:
        optimizer: makers of optimisers.
        scheduler: makers of learning rate schedules.
        clip: the largest norms of gradients.
        error: makes the errors.
    """

    optimizer: Any
    scheduler: Any = None
    clip: Any = None
    error: Callable[[str], DniGraphError] = DniGraphError

    def of(self, name: str) -> tuple[Any, Any, Any]:
        """The choices for a group: a maker of an optimiser, a maker of a schedule, the largest norm."""
        make, schedule, clip = (chosen(choice, name) for choice in (self.optimizer, self.scheduler, self.clip))
        return make, schedule, clip

    def group(self, name: str, parameters: list[nn.Parameter], named: Named, what: str | None = None) -> Group | None:
        """The group of these parameters; None where none of them is trained.

        Args:
            named: all parameters of the run with their names.
            what: what the group is, for errors; None: its name.

        Raises:
            DniGraphError: there is no optimiser for them, or it is none of these parameters.
        """
        trained = list(dict.fromkeys(p for p in parameters if p.requires_grad))
        if not trained:
            return None
        make, schedule, clip = self.of(name)
        if make is None:
            raise self.error(lacks(what or name))
        optimizer = make_optimizer(make, trained, what or name, named, self.error)
        return Group(name, trained, optimizer, schedule(optimizer) if schedule else None, clip)


def lacks(name: str) -> str:
    """Why a group has no optimiser."""
    return f"no optimiser is named for {name}; add an entry '*' for the rest"


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
