"""Links and ports, as the user describes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from ...boundaries import Boundary, BoundaryChoice
from ...heads import HeadChoice
from ...heads.conditions import ConditionChoice
from .policy import Policy

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
class Link:
    """From one output to one or more inputs, with its delay, policy and boundary."""

    source: Port
    sinks: tuple[Port, ...]
    delay: int | None  # ticks from sending to arriving; None: 0, or 1 if the link closes a circle
    back: int  # ticks that an answer is later than it could be
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
