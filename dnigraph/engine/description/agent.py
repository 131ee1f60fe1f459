"""Agents, as the user describes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from ..updates.rules import MakeOptimizer
from .clock import Clock
from .ports import Inputs, inputs_of

AgentLoss: TypeAlias = "Callable[[Any, Any], Any] | str | None"


class WindowModule(nn.Module):
    """Takes windows, several steps of time at once. Its targets are one per step, so none can be a label for heads."""

    batch_first: bool = True  # windows are [batch, time, ...], as messages between agents must be


@dataclass
class Agent:
    """One module of a network, with its clock, loss and optimiser."""

    name: str
    module: nn.Module
    clock: Clock
    loss: AgentLoss = None  # of (output, target), or the name of the output that is one
    optimizer: MakeOptimizer | None = None
    clip: float | None = None
    p_update: float = 1.0  # probability that a firing learns
    outputs: tuple[str, ...] | None = None  # names for the entries of a tuple, or for a single value
    present: bool = True  # False: the agent is paused
    inputs: Inputs = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = inputs_of(self.module)

    @property
    def takes_windows(self) -> bool:
        """Whether its module takes several steps of time at once, so that its targets are no labels for heads."""
        return isinstance(self.module, WindowModule)

    @property
    def time_first(self) -> bool:
        """Whether it takes windows [time, batch, ...]."""
        return isinstance(self.module, WindowModule) and not self.module.batch_first

    def reads(self, tick: int) -> bool:
        """Whether the agent fires in this tick."""
        return self.present and self.clock.fires(tick)

    def trains(self) -> bool:
        """Whether the agent has parameters that learn."""
        return any(p.requires_grad for p in self.module.parameters())
