"""The receiver's end of a link: messages come in, are read, and are answered once."""

import warnings
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .arrivals import ABSENT, KEPT, Entry, moved, plain
from .channel import Answer, Channel, Line, Message
from .description.agent import Agent
from .description.clock import Clock
from .description.link import Link, Port
from .description.network_error import NetworkError
from .description.samples import first_value
from .prediction import Prediction
from .tick import Tick
from .updates.groups import finite

MOST = 64  # messages kept for a paused reader that averages; a bound on memory


class Inbox:
    """Holds what one input of an agent can read.

    A message is answered when no firing will read it any more and all firings that read it have learned. Whether it
    will be read follows from the two clocks; of a sender that is paused by now, the message stays open until the next
    one comes. A message that was answered before its sender was paused may be read again, and returns no gradient.

    Args:
        sink: the input.
        delay: ticks from sending to arriving.
        sender, reader: the clocks of the two ends.
        initial: what is read before a message has arrived, or a function that makes it; None: nothing.
        example: of a message: all messages have its dtype and device.
        optional: whether the argument has a default.
        copies: whether the agent writes to the value in place, so that each reading needs a copy.
        prediction: what the agent reads in place of messages, in train mode.
        source: the sender, which may be paused; None: an input of the network.
        exact: whether the sender waits for the true gradient.
    """

    def __init__(
        self, link: Link, sink: Port, delay: int, sender: Clock, reader: Clock, *, initial: Any = None,
        example: Tensor | None = None, optional: bool = False, copies: bool = False,
        prediction: Prediction | None = None, source: Agent | None = None, exact: bool = False,
    ):  # fmt: skip
        self.link, self.sink, self.delay, self.sender, self.reader = link, sink, delay, sender, reader
        self.policy, self.initial, self.optional, self.copies = link.policy, initial, optional, copies
        self.prediction = prediction
        self.source, self.exact = source, exact
        self._told = False  # that readings return no gradient
        self.pushed = False  # whether the answers of this tick have been sent
        self.ordered = False  # whether messages are read within the tick in which they are sent
        self.messages: Channel[Message | None] = Line()
        self.answers: Channel[list[Answer]] = Line()
        self.coming: deque[Message] = deque()
        self.entries: list[Entry] = []
        self.ready: list[Answer] = []
        self.example = example
        self._most = max(MOST, -(-reader.every // sender.every) + 1)  # messages that wait to be averaged

    # ---- what comes in

    def begin(self, tick: Tick) -> None:
        """Take in the messages that can be read in this tick."""
        self.pushed = False
        if self.ordered:
            self.pull()
        if self.prediction is None or not tick.learning:
            self._arrive(tick.number)

    def end(self, tick: Tick) -> None:
        """Take in the messages that can be read in later ticks. A predictor learns from the one that it predicted."""
        if not self.ordered:
            self.pull()
        if self.prediction is not None and tick.learning:
            self._compare(self.prediction, tick.number)

    def take(self, message: Message) -> None:
        """Add a message that is under way."""
        self.coming.append(message)

    def pull(self) -> None:
        """Take this tick's packet from the sender."""
        message = self.messages.get()
        if message is not None:
            self.take(message)

    def _arrive(self, tick: int) -> None:
        """Move messages whose delay is over into the inbox, and drop the oldest beyond what the policy keeps."""
        while self.coming and self.coming[0].sent + self.delay <= tick:
            self.entries.append(Entry(self.coming.popleft()))
            self._make_room()

    def _compare(self, prediction: Prediction, tick: int) -> None:
        """Train the predictor on the message that it predicted, and answer all others whose delay is over."""
        while self.coming and self.coming[0].sent + self.delay <= tick:
            message = self.coming.popleft()
            # The newest stays in the inbox, in case the network goes on in eval mode.
            self.entries = [Entry(message, closed=True, answered=True)]
            if not prediction.learn(message) and message.wants:
                self.ready.append(Answer(message.sent, None))
        prediction.forget()

    def _make_room(self) -> None:
        if self.policy.keeps is None:  # messages that were read are replaced by the new ones
            for entry in [e for e in self.entries if e.read]:
                self._close(entry)
            self.entries = [e for e in self.entries if not e.read]
        while len(self.entries) > (self.policy.keeps or self._most):
            self._close(self.entries.pop(0))

    # ---- reading

    def missing(self, tick: Tick, known: Container[str], restarted: bool) -> list[str]:
        """The inputs of the network that a reading in this tick needs and that were not given.

        Args:
            known: inputs of the network that were given in the episode until then.
            restarted: whether the episode began after what the inbox holds had come.
        """
        if self.prediction is not None and tick.learning:
            return [name for name in self.prediction.names if name not in tick.inputs]
        holds = not restarted and (self.entries or self.coming)
        needed = self.link.outside and self.delay == 0 and self.link.initial is None and not self.optional
        name = self.link.source.name
        return [name] if needed and not holds and name not in known else []

    def read(self, tick: Tick) -> "Reading":
        """What a firing in this tick reads."""
        if self.prediction is not None and tick.learning:
            sent = tick.number - self.delay
            value = self.prediction.predict(sent, tick.inputs)
            return Reading(self, value, [Entry(Message(sent, None, True), open=1, closed=True)])
        if not self.entries:
            return Reading(self, self._first(tick.batch))
        entries = list(self.entries)
        for entry in entries:
            if entry.message.spoilt:
                words = f"what {self.link.source} sent in tick {entry.message.sent} has been written to since: "
                raise NetworkError([f"{self.sink}: {words}send a copy, tensor.clone()"], "a message is not what it was")
            if entry.answered and entry.message.wants and tick.learning:
                self._tell_of_lost_gradient(entry.message, tick.number)
            entry.open += 1
            entry.read = True
        value = self._joined([entry.message for entry in entries])
        return Reading(self, value, entries, tick.number - entries[0].message.sent)

    def _tell_of_lost_gradient(self, message: Message, tick: int) -> None:
        """Warn once that a reading returns no gradient, where the sender waits for the true one."""
        if not self._told and self.exact and not self._source_fires:
            self._told = True
            warnings.warn(
                f"tick {tick}: {self.sink} reads again what {self.link.source} sent in tick {message.sent}. That was "
                f"answered before {self.link.source.agent} was paused, so nothing of this reading goes back: with an "
                "oracle the gradient lacks it, beside that of the unrolled network. To have it, pause before the last "
                "reading; or end the stretch of time first, net.settle()",
                stacklevel=10,
            )

    @property
    def _source_fires(self) -> bool:
        """Whether the sender is not paused."""
        return self.source is None or self.source.present

    def _first(self, batch: int | None) -> Any:
        if self.initial is None:
            return ABSENT
        return self.policy.joined([first_value(self.initial, batch, self.example)])

    def _joined(self, messages: list[Message]) -> Any:
        values = [message.value for message in messages]
        shapes = {tuple(v.shape) for v in values if isinstance(v, Tensor)}
        if len(shapes) > 1:
            listed = ", ".join(
                f"{list(m.value.shape)} in tick {m.sent}" for m in messages if isinstance(m.value, Tensor)
            )
            raise NetworkError(
                [
                    f"{self.sink} reads the {self.policy} of what {self.link.source} sent, and that is {listed}: send "
                    "messages of one shape (batches of one size), or end the episode before, tick(..., ends=True)"
                ],
                "messages do not fit each other",
            )
        return self.policy.joined(values)

    # ---- answering

    def learned(self, tick: int, reading: "Reading", gradient: Tensor | None) -> None:
        """Called when a firing has learned, or never will: its messages get their shares of the gradient.

        A gradient that is not finite is none.
        """
        count = len(reading.entries)
        if not count:
            return
        gradient = gradient if gradient is None or finite([gradient]) else None
        shares = [None] * count if gradient is None else self.policy.shares(gradient, count)
        for entry, share in zip(reading.entries, shares, strict=True):
            entry.open -= 1
            if share is not None:
                entry.total = share if entry.total is None else entry.total + share
            until = entry if self.policy.keeps is not None else reading.entries[-1]
            entry.closed = entry.closed or self._was_last(until.message, tick)
            self._answer(entry)

    def _was_last(self, message: Message, tick: int) -> bool:
        """Whether the reading in `tick` was the last one that could see this message.

        For a mean, pass the newest of the averaged messages: the next message replaces them all.
        """
        if not self._source_fires:
            return False
        newer = message.sent
        for _ in range(self.policy.keeps or 1):
            newer = self.sender.after(newer)
        return self.reader.after(tick) >= newer + self.delay

    def _close(self, entry: Entry) -> None:
        entry.closed = True
        self._answer(entry)

    def _answer(self, entry: Entry) -> None:
        if entry.closed and not entry.open and not entry.answered:
            entry.answered = True
            if entry.message.wants:
                self.ready.append(Answer(entry.message.sent, entry.total))

    def push(self) -> None:
        """Send this tick's answers back to the sender; inputs of the network have none."""
        ready, self.ready, self.pushed = self.ready, [], True
        if not self.link.outside:
            self.answers.put(ready)

    @property
    def complete(self) -> bool:
        """Whether nothing that comes in this tick can add to its answers, once the agent has learned."""
        return self.ordered and self.prediction is None

    def close(self) -> None:
        """Answer every message in the inbox and under way; a later reading of them returns no gradient."""
        for message in self.coming:
            if message.wants:
                self.ready.append(Answer(message.sent, None))
        self.coming = deque(Message(m.sent, m.value, False) for m in self.coming)
        for entry in self.entries:
            self._close(entry)
            if entry.answered:
                entry.message = Message(entry.message.sent, entry.message.value, False)

    def clear(self) -> None:
        """Drop all messages."""
        self.coming.clear()
        self.entries, self.ready = [], []

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """The inbox between two ticks, as plain data."""
        return {
            "coming": [plain(m) for m in self.coming],
            "entries": [{**plain(e.message), **{name: getattr(e, name) for name in KEPT}} for e in self.entries],
            "ready": [(a.sent, a.gradient) for a in self.ready],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        state = moved(state, None if self.example is None else self.example.device)
        self.coming = deque(Message(**m) for m in state["coming"])
        self.entries = []
        for e in state["entries"]:
            message = Message(e["sent"], e["value"], e["wants"])
            self.entries.append(Entry(message, **{name: e[name] for name in KEPT}))
        self.ready = [Answer(*a) for a in state["ready"]]


@dataclass
class Reading:
    """What a firing read from an inbox."""

    inbox: Inbox
    value: Any
    entries: list[Entry] = field(default_factory=list)  # oldest first; empty: the initial value was read
    stale: int | None = None  # ticks since the oldest of them was sent
    leaf: Any = None  # the value as the module saw it

    def learned(self, tick: int, gradient: Tensor | None) -> None:
        """The firing of that tick has learned: its messages get their shares of the gradient."""
        self.inbox.learned(tick, self, gradient)
