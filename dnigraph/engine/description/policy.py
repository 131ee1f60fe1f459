"""Policies: what a receiver reads if its clock differs from the sender's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...passes.errors import is_whole, nearest
from .network_error import NetworkError


class Policy(ABC):
    """Joins the messages in an inbox, oldest first, into one value, and divides its gradient among them.

    Attributes:
        keeps: how many messages the inbox holds; None: all that have not been read.
    """

    keeps: int | None = 1

    @abstractmethod
    def joined(self, values: Sequence[Any]) -> Any:
        """The value that the receiver reads, from one or more messages."""

    @abstractmethod
    def shares(self, gradient: Tensor, count: int) -> list[Tensor]:
        """The gradient of each of `count` messages, oldest first."""


@dataclass(frozen=True)
class Latest(Policy):
    """The latest message, again and again until there is a newer one."""

    def joined(self, values: Sequence[Any]) -> Any:
        return values[-1]

    def shares(self, gradient: Tensor, count: int) -> list[Tensor]:
        return [gradient]

    def __str__(self) -> str:
        return "latest"


@dataclass(frozen=True)
class Mean(Policy):
    """The mean of all messages since the receiver last fired; if there are none, the value that it read then."""

    keeps = None

    def joined(self, values: Sequence[Any]) -> Any:
        return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)

    def shares(self, gradient: Tensor, count: int) -> list[Tensor]:
        return [gradient / count] * count if count > 1 else [gradient]

    def __str__(self) -> str:
        return "mean"


@dataclass(frozen=True)
class Stack(Policy):
    """The last `size` messages side by side, zeros in front as long as there are fewer.

    Shapes: messages [batch, ...] -> [batch, size, ...], the newest last.
    """

    size: int

    @property
    def keeps(self) -> int:  # type: ignore[override]  # an attribute elsewhere
        return self.size

    def joined(self, values: Sequence[Any]) -> Any:
        missing = [torch.zeros_like(values[0])] * (self.size - len(values))
        return torch.stack([*missing, *values], 1)

    def shares(self, gradient: Tensor, count: int) -> list[Tensor]:
        return list(gradient.unbind(1))[-count:]

    def __str__(self) -> str:
        return f"stack of {self.size}"


PolicyChoice: TypeAlias = "str | Policy"
LATEST: Policy = Latest()
NAMED: dict[str, Policy] = {"latest": LATEST, "mean": Mean()}


def stack(size: int) -> Policy:
    """A policy for `connect`: the receiver reads the last `size` messages as [batch, size, ...], the newest last.

    Raises:
        NetworkError: `size` is not a positive whole number.
    """
    if not is_whole(size, 1):
        raise NetworkError([f"stack: size must be a positive whole number, not {size!r}"])
    return Stack(size)


def make_policy(choice: PolicyChoice) -> Policy:
    """The policy of this name, or the one that was made.

    Raises:
        NetworkError: there is none.
    """
    if isinstance(choice, Policy):
        return choice
    if isinstance(choice, str) and choice in NAMED:
        return NAMED[choice]
    near = nearest(choice, NAMED) if isinstance(choice, str) else ""
    raise NetworkError([f"there is no policy {choice!r}{near}; say 'latest', 'mean' or dg.stack(n)"])
