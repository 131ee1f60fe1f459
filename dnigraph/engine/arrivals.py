"""Messages that have arrived."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .channel import Message

ABSENT = object()  # no message has arrived yet, and there is no initial value
KEPT = ("total", "closed", "answered", "read")  # of an entry, in a checkpoint


@dataclass
class Entry:
    """A message that has arrived."""

    message: Message
    total: Tensor | None = None  # sum of the gradients of firings that read it and have learned
    open: int = 0  # readings that have not learned yet
    closed: bool = False  # no firing will read it any more
    answered: bool = False
    read: bool = False  # by a firing


def plain(message: Message) -> dict[str, Any]:
    """The message as plain data."""
    return {"sent": message.sent, "value": message.value, "wants": message.wants}


def moved(state: Any, device: torch.device | None) -> Any:
    """The state with its tensors on a device; None: where they are."""
    return state if device is None else pytree.tree_map_only(Tensor, lambda t: t.to(device), state)
