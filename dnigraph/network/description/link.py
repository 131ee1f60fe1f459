"""Agents, links and ports, as the user describes them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

from ...boundaries import Boundary, BoundaryChoice
from ...heads import HeadChoice
from ...heads.conditions import ConditionChoice
from ...runners.optimizers import MakeOptimizer
from .clock import Clock
from .policy import Policy
from .ports import Inputs, inputs_of

AgentLoss: TypeAlias = "Callable[[Any, Any], Any] | str | None"
PredictorFactory: TypeAlias = Callable[[list[Tensor], Tensor], nn.Module]  # takes examples of inputs and message
SyntheticChoice: TypeAlias = "bool | str | tuple[str, ...] | list[str] | PredictorFactory"


@dataclass(frozen=True)
class Port:
    """A named input or output of an agent; no agent: an input of the whole network."""

    agent: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.agent}.{self.name}" if self.agent else self.name


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

    def reads(self, tick: int) -> bool:
        """Whether the agent fires in this tick."""
        return self.present and self.clock.fires(tick)

    def trains(self) -> bool:
        """Whether the agent has parameters that learn."""
        return any(p.requires_grad for p in self.module.parameters())


@dataclass
class Link:
    """From one output to one or more inputs, with its delay, policy and boundary."""

    source: Port
    sinks: tuple[Port, ...]
    delay: int | None  # ticks from sending to arriving; None: 0, or 1 if the link closes a circle
    policy: Policy
    boundary: "BoundaryChoice | Boundary | None"  # None: no gradient goes back
    head: HeadChoice
    condition: ConditionChoice
    synthetic: Any  # False, True, names of the network's inputs, or a factory: see `connect`
    initial: Any  # what receivers read before a message has arrived

    @property
    def name(self) -> str:
        """The name of its output, as tables and logs show it."""
        return f"{self.source} → {', '.join(map(str, self.sinks))}"

    @property
    def outside(self) -> bool:
        """Whether it starts at an input of the network."""
        return self.source.agent is None
