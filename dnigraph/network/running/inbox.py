"""The receiver's end of a link: messages come in, are read, and are answered once."""

from collections import deque
from collections.abc import Container
from typing import Any

from torch import Tensor

from ..description.clock import Clock
from ..description.link import Link, Port
from ..description.network_error import NetworkError
from ..description.samples import first_value
from .arrivals import ABSENT, KEPT, Entry, Reading, moved, plain
from .channel import Answer, Channel, Message


class Inbox:
    """Holds what one input of an agent can read.

    A message is answered when no firing will read it any more and all firings that read it have learned. Whether it
    will be read follows from the two clocks, as if no agent were ever paused; a later reading returns no gradient.
    """

    def __init__(self, link: Link, sink: Port, delay: int, sender: Clock, clock: Clock, ordered: bool):
        self.link, self.sink, self.delay, self.ordered = link, sink, delay, ordered
        self.policy, self.sender, self.clock = link.policy, sender, clock
        self.messages: Channel[Message | None]
        self.answers: Channel[list[Answer]]
        self.coming: deque[Message] = deque()
        self.entries: list[Entry] = []
        self.ready: list[Answer] = []
        self.initial: Any = (
            None  # what is read before a message has arrived, or a function that makes it; None: nothing
        )
        self.like: Tensor | None = None  # an example of a message: all messages have its dtype and device
        self.writes = False  # whether its agent writes to the value in place, and so needs a copy
        self.optional = False  # whether the argument has a default
        self.most = max(MOST, -(-clock.every // sender.every) + 1)  # that wait to be averaged

    # ---- what comes in

    def pull(self) -> None:
        """Take this tick's packet from the sender."""
        message = self.messages.get()
        if message is not None:
            self.take(message)

    def take(self, message: Message) -> None:
        """Add a message that is under way."""
        self.coming.append(message)

    def arrive(self, tick: int) -> None:
        """Move messages whose delay is over into the inbox, and drop the oldest beyond what the policy keeps."""
        while self.coming and self.coming[0].sent + self.delay <= tick:
            self.entries.append(Entry(self.coming.popleft()))
            self._make_room()

    def _make_room(self) -> None:
        if self.policy.keeps is None:  # messages that were read are replaced by the new ones
            for entry in [e for e in self.entries if e.read]:
                self._close(entry)
            self.entries = [e for e in self.entries if not e.read]
        while len(self.entries) > (self.policy.keeps or self.most):
            self._close(self.entries.pop(0))

    # ---- reading

    def lacks(self, known: Container[str], anew: bool) -> bool:
        """Whether this input of the network would be read before it was given in the episode.

        Args:
            known: inputs of the network that were given until then.
            anew: whether a new episode has begun since.
        """
        came = not anew and (self.entries or self.coming)
        wanted = self.link.outside and self.delay == 0 and self.link.initial is None and not self.optional
        return wanted and not came and self.link.source.name not in known

    def read(self, tick: int, batch: int | None) -> Reading:
        """What a firing in this tick reads."""
        if not self.entries:
            return Reading(self._first(batch))
        entries = list(self.entries)
        for entry in entries:
            if entry.message.spoilt:
                words = f"what {self.link.source} sent in tick {entry.message.sent} has been written to since: "
                raise NetworkError([f"{self.sink}: {words}send a copy, tensor.clone()"], "a message is not what it was")
            entry.open += 1
            entry.read = True
        value = self._joined([entry.message for entry in entries])
        return Reading(value, entries, tick - entries[0].message.sent)

    def _joined(self, messages: list[Message]) -> Any:
        values = [message.value for message in messages]
        shapes = {tuple(v.shape) for v in values if isinstance(v, Tensor)}
        if len(shapes) > 1:
            said = ", ".join(f"{list(m.value.shape)} in tick {m.sent}" for m in messages if isinstance(m.value, Tensor))
            raise NetworkError(
                [
                    f"{self.sink} reads the {self.policy} of what {self.link.source} sent, and that is {said}: send "
                    "messages of one shape (batches of one size), or end the episode before, tick(..., ends=True)"
                ],
                "messages do not fit each other",
            )
        return self.policy.joined(values)

    def learned(self, tick: int, reading: Reading, gradient: Tensor | None) -> None:
        """For a firing that has learned, or never will: its messages get their shares of the gradient."""
        count = len(reading.entries)
        if not count:
            return
        shares = [None] * count if gradient is None else self.policy.shares(gradient, count)
        for entry, share in zip(reading.entries, shares, strict=True):
            entry.open -= 1
            if share is not None:
                entry.total = share if entry.total is None else entry.total + share
                entry.last = max(entry.last, tick)
            until = entry if self.policy.keeps is not None else reading.entries[-1]
            entry.closed = entry.closed or self._was_last(until.message, tick)
            self._answer(entry)

    def _was_last(self, message: Message, tick: int) -> bool:
        """Whether the reading in `tick` was the last one that could see this message.

        For a mean, pass the newest of the averaged messages: the next message replaces them all.
        """
        newer = message.sent
        for _ in range(self.policy.keeps or 1):
            newer = self.sender.after(newer)
        return self.clock.after(tick) >= newer + self.delay

    def _first(self, batch: int | None) -> Any:
        if self.initial is None:
            return ABSENT
        return self.policy.joined([first_value(self.initial, batch, self.like)])

    # ---- answering

    def _close(self, entry: Entry) -> None:
        entry.closed = True
        self._answer(entry)

    def _answer(self, entry: Entry) -> None:
        if entry.closed and not entry.open and not entry.answered:
            entry.answered = True
            if entry.message.wants:
                self.ready.append(Answer(entry.message.sent, entry.last, entry.total))

    def push(self) -> None:
        """Send this tick's answers back to the sender; inputs of the network have none."""
        ready, self.ready = self.ready, []
        if not self.link.outside:
            self.answers.put(ready)

    def close(self) -> None:
        """Answer every message in the inbox and under way; a later reading of them returns no gradient."""
        for message in self.coming:
            if message.wants:
                self.ready.append(Answer(message.sent, -1, None))
        self.coming = deque(Message(m.sent, m.value, False) for m in self.coming)
        for entry in self.entries:
            self._close(entry)

    def forget(self) -> None:
        """Drop all messages."""
        self.coming.clear()
        self.entries, self.ready = [], []

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """The inbox between two ticks, as plain data."""
        return {
            "coming": [plain(m) for m in self.coming],
            "entries": [{**plain(e.message), **{name: getattr(e, name) for name in KEPT}} for e in self.entries],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        state = moved(state, None if self.like is None else self.like.device)
        self.coming = deque(Message(**m) for m in state["coming"])
        self.entries = []
        for e in state["entries"]:
            message = Message(e["sent"], e["value"], e["wants"])
            self.entries.append(Entry(message, **{name: e[name] for name in KEPT if name in e}))


MOST = 64  # messages kept for a paused reader that averages; a bound on memory
