"""The state of an actor between two ticks: for a checkpoint, or set aside while something else runs."""

from collections import deque
from collections.abc import Mapping
from typing import Any

from ...runners.optimizers import Group
from .actor import Actor
from .inbox import Inbox


def state_of(actor: Actor) -> dict[str, Any]:
    """The actor's state between two ticks, without its module's weights."""
    return {
        "chance": actor.chance.get_state(),
        "present": actor.agent.present,
        "inboxes": [inbox.state() for inbox in actor.inboxes],
        "outboxes": [box.state() for box in actor.outboxes],
        "optimizer": _optimizer_state(actor.group),
        "heads": [_optimizer_state(box.group) for box in actor.outboxes],
        "predictors": [_optimizer_state(_predictor_group(inbox)) for inbox in actor.inboxes],
    }


def restore_state(actor: Actor, state: Mapping[str, Any]) -> None:
    """Restore what `state_of` returned."""
    actor.chance.set_state(state["chance"])
    actor.agent.present = state["present"]
    for inbox, messages in zip(actor.inboxes, state["inboxes"], strict=True):
        inbox.load(messages)
    for box, messages in zip(actor.outboxes, state["outboxes"], strict=True):
        box.load(messages)
    for group, optimizer in zip(groups_of(actor), saved_groups(state), strict=True):
        if group is not None:
            group.optimizer.load_state_dict(optimizer)


def groups_of(actor: Actor) -> list[Group | None]:
    """The parameter groups of the actor, its heads and its predictors, in the order of a checkpoint."""
    return [actor.group, *(box.group for box in actor.outboxes), *map(_predictor_group, actor.inboxes)]


def saved_groups(state: Mapping[str, Any]) -> list[Any]:
    """The states of the optimisers in what `state_of` returned, in the order of `groups_of`."""
    return [state["optimizer"], *state["heads"], *state["predictors"]]


def set_aside(actor: Actor) -> list[Any]:
    """Remove and return all messages and waiting firings of the actor."""
    inboxes = [(i.coming, i.entries, i.ready) for i in actor.inboxes]
    messages = [actor.waiting, inboxes, [box.sent for box in actor.outboxes]]
    actor.waiting = []
    for inbox in actor.inboxes:
        inbox.coming, inbox.entries, inbox.ready = deque(), [], []
    for box in actor.outboxes:
        box.sent = {}
    return messages


def take_back(actor: Actor, messages: list[Any]) -> None:
    """Put back what `set_aside` returned."""
    actor.waiting, inboxes, sent = messages
    for inbox, (coming, entries, ready) in zip(actor.inboxes, inboxes, strict=True):
        inbox.coming, inbox.entries, inbox.ready = coming, entries, ready
    for box, own in zip(actor.outboxes, sent, strict=True):
        box.sent = own


def _predictor_group(inbox: Inbox) -> Group | None:
    return None if inbox.prediction is None else inbox.prediction.group


def _optimizer_state(group: Group | None) -> dict[str, Any] | None:
    return None if group is None else group.optimizer.state_dict()
