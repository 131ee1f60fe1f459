"""The state of an actor between two ticks: for a checkpoint, or set aside while something else runs."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from .actor import Actor


def state_of(actor: Actor) -> dict[str, Any]:
    """The actor's state between two ticks, without the weights and optimisers."""
    return {
        "present": actor.agent.present,
        "inboxes": [inbox.state() for inbox in actor.inboxes],
        "outboxes": [box.state() for box in actor.outboxes],
    }


def restore_state(actor: Actor, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned."""
    actor.agent.present = state["present"]
    for inbox, messages in zip(actor.inboxes, state["inboxes"], strict=True):
        inbox.load(messages)
    for box, messages in zip(actor.outboxes, state["outboxes"], strict=True):
        box.load(messages)


def set_aside(actor: Actor) -> list[Any]:
    """Remove and return all messages and waiting firings of the actor."""
    inboxes = [(i.coming, i.entries, i.ready) for i in actor.inboxes]
    messages = [actor.waiting, inboxes, [box.lie_aside() for box in actor.outboxes]]
    actor.waiting = []
    for inbox in actor.inboxes:
        inbox.coming, inbox.entries, inbox.ready = deque(), [], []
    return messages


def take_back(actor: Actor, messages: list[Any]) -> None:
    """Put back what `set_aside` returned."""
    actor.waiting, inboxes, sent = messages
    for inbox, (coming, entries, ready) in zip(actor.inboxes, inboxes, strict=True):
        inbox.coming, inbox.entries, inbox.ready = coming, entries, ready
    for box, own in zip(actor.outboxes, sent, strict=True):
        box.take_back(*own)
