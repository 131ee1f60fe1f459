"""What one tick of a network is given, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Tick:
    """What one tick of the network is given, and what comes of it."""

    number: int
    inputs: Mapping[str, Any]  # of the network, by name
    targets: Mapping[str, Any]  # by agent
    labels: Mapping[str, Any]  # by agent
    batch: int | None
    learning: bool = True
    begun: bool = False
    ends: bool = False  # nobody will read what is sent in it and not read in it
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # by agent: arguments under names of the user's
    losses: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TickResult:
    """What one tick gives back."""

    tick: int
    losses: dict[str, Tensor]  # by agent; one number each, detached; of those that fired and had a target
    outputs: dict[str, dict[str, Any]]  # by agent and output, detached; of those that fired

    @property
    def fired(self) -> list[str]:
        """The agents that fired, in the order in which they did."""
        return list(self.outputs)
