"""Messages from sender to receiver, answers back, and the queues that carry them."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Message:
    """A value that an agent sent in a tick. It is detached: no graph goes from agent to agent."""

    sent: int  # the tick
    value: Any
    wants: bool  # whether the sender waits for an answer
    version: int = field(init=False, default=0)  # torch counts writes to the memory: it must still be this when read

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", _version(self.value))

    def __reduce__(self) -> tuple[type["Message"], tuple[int, Any, bool]]:
        return Message, (self.sent, self.value, self.wants)  # the memory of a copy has its own count of writes

    @property
    def spoilt(self) -> bool:
        """Whether its memory has been written to since it was sent."""
        return _version(self.value) != self.version


@dataclass(frozen=True)
class Answer:
    """One receiver's answer to a message, given once: the gradient of everything that it computed from it."""

    sent: int  # the tick in which the message was sent
    gradient: Tensor | None  # None: the receiver did not use the message, or did not learn


class Channel(Protocol, Generic[T]):
    """A queue from one agent to another; each puts one packet into it, and takes one out of it, in every tick."""

    def put(self, packet: T) -> None:
        """Add a packet."""

    def get(self) -> T:
        """Take the oldest packet."""

    def rest(self) -> list[T]:
        """Take all packets."""


class Line(Generic[T]):
    """A channel within one thread; a packet is put before it is taken."""

    def __init__(self) -> None:
        self._packets: deque[T] = deque()

    def put(self, packet: T) -> None:
        """Add a packet."""
        self._packets.append(packet)

    def get(self) -> T:
        """Take the oldest packet."""
        return self._packets.popleft()

    def rest(self) -> list[T]:
        """Take all packets."""
        packets = list(self._packets)
        self._packets.clear()
        return packets


def _version(value: Any) -> int:
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0
