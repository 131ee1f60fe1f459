"""The inputs and the results of one tick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..heads.seen import Inputs, Outputs, Seen


@dataclass(frozen=True)
class TickResult:
    """The losses and outputs of one tick."""

    tick: int
    losses: dict[str, Tensor]  # by agent: a detached scalar, of agents that fired and had a target
    outputs: dict[str, dict[str, Any]]  # by agent and output: detached, of agents that fired

    @property
    def fired(self) -> list[str]:
        """The agents that fired, in order."""
        return list(self.outputs)


@dataclass
class Tick:
    """What one tick is given, and its losses and outputs."""

    number: int
    inputs: Mapping[str, Any]  # of the network, by name
    targets: Mapping[str, Any]  # by agent
    labels: Mapping[str, Any]  # by agent
    batch: int | None
    learning: bool = True
    begun: bool = False
    ends: bool = False  # messages sent in this tick with a delay are dropped
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # by agent: arguments of agents that take any name
    losses: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    errors: Outputs = field(default_factory=Outputs)  # at the outputs of the model whose parts the agents are

    def seen(self, label: Any) -> Seen:
        """All that a boundary may look at in this tick, for an agent with this label."""
        return Seen(label, Inputs.of(list(self.inputs), list(self.inputs.values())), self.errors)

    def result(self, order: Sequence[str]) -> TickResult:
        """Its losses and outputs in this order of agents, whatever the order of threads was."""
        fired = [name for name in order if name in self.outputs]
        losses = {name: self.losses[name] for name in fired if name in self.losses}
        return TickResult(self.number, losses, {name: self.outputs[name] for name in fired})
