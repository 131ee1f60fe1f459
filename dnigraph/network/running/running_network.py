"""A network that can run: actors, what stands between them, and the channels that join them."""

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
    """A network that can run."""

    actors: dict[str, Actor]
    boundaries: dict[str, Boundary]  # by their links' names
    predictors: dict[str, nn.Module]
    outside: list[tuple[str, Inbox]] = field(default_factory=list)  # inputs of the network, and who reads them
    inboxes: dict[tuple[int, int], Inbox] = field(default_factory=dict)  # by link and receiver
    outboxes: dict[int, Outbox] = field(default_factory=dict)  # by link

    def order(self, wiring: Wiring) -> None:
        """Let links be waited for as `wiring` says."""
        for (number, _), inbox in self.inboxes.items():
            inbox.ordered = wiring.waits(number)
        for number, box in self.outboxes.items():
            box.ordered = (wiring.waits(number),) * len(box.link.sinks)

    def connect(self, line: Any = Line) -> None:
        """Lay channels of this kind between all actors."""
        for (number, sink), inbox in self.inboxes.items():
            inbox.messages, inbox.answers = line(), line()
            if sink == 0 and number in self.outboxes:
                self.outboxes[number].messages, self.outboxes[number].answers = [], []
            if number in self.outboxes:
                self.outboxes[number].messages.append(inbox.messages)
                self.outboxes[number].answers.append(inbox.answers)

    def mend(self) -> None:
        """After ticks that broke off: whatever is still between two agents arrives, and nothing half done is left."""
        for inbox in self.inboxes.values():
            for message in inbox.messages.rest():
                if message is not None:
                    inbox.take(message)
        for actor in self.actors.values():
            actor.drop()


def deliver(outside: list[tuple[str, Inbox]], tick: Tick) -> None:
    """Hand the network's inputs to who reads them."""
    for name, inbox in outside:
        inbox.messages.put(Message(tick.number, tick.inputs[name], False) if name in tick.inputs else None)
