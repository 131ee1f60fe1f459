"""A network that can run: actors, boundaries, and the channels between them."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...boundaries import Boundary
from ..checks.delays import Wiring
from .actor import Actor
from .channel import Line, Message
from .inbox import Inbox
from .outbox import Outbox
from .tick import Tick


@dataclass
class Built:
    """Actors, boundaries, predictors and both ends of every link."""

    actors: dict[str, Actor]
    boundaries: dict[str, Boundary]  # by their links' names
    predictors: dict[str, nn.Module]
    outside: list[tuple[str, Inbox]] = field(
        default_factory=list
    )  # inputs of the network, each with an inbox that reads it
    inboxes: dict[tuple[int, int], Inbox] = field(default_factory=dict)  # by link and receiver
    outboxes: dict[int, Outbox] = field(default_factory=dict)  # by link

    def order(self, wiring: Wiring) -> None:
        """Tell both ends of each link whether its messages are read within the tick."""
        for (number, _), inbox in self.inboxes.items():
            inbox.ordered = wiring.waits(number)
        for number, box in self.outboxes.items():
            box.ordered = (wiring.waits(number),) * len(box.link.sinks)

    def connect(self, line: Any = Line) -> None:
        """Connect all actors by new channels of this kind."""
        for (number, sink), inbox in self.inboxes.items():
            inbox.messages, inbox.answers = line(), line()
            if sink == 0 and number in self.outboxes:
                self.outboxes[number].messages, self.outboxes[number].answers = [], []
            if number in self.outboxes:
                self.outboxes[number].messages.append(inbox.messages)
                self.outboxes[number].answers.append(inbox.answers)

    def mend(self) -> None:
        """After a failed tick: deliver messages under way, and drop half-made gradients."""
        for inbox in self.inboxes.values():
            for message in inbox.messages.rest():
                if message is not None:
                    inbox.take(message)
        for actor in self.actors.values():
            actor.drop()


def deliver(outside: list[tuple[str, Inbox]], tick: Tick) -> None:
    """Put the network's inputs into the inboxes that read them."""
    for name, inbox in outside:
        inbox.messages.put(Message(tick.number, tick.inputs[name], False) if name in tick.inputs else None)
