"""The event log of a run: which agents fired, what was sent, how stale each message and target was."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..passes.errors import nearest
from .description.link import Link
from .description.network_error import NetworkError
from .inbox import Reading

KINDS = ("fire", "read", "send", "target", "unused")
TICK = 1000  # microseconds that a tick takes in a trace


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        tick: since the log began; an episode that ends does not set it back.
        kind: "fire", "read" (a message, by its receiver), "send", "target" (of a message has come to its sender) or
            "unused" (nobody will learn from the message).
        agent: whose.
        port: of a reading the input, else the output.
        sent: the tick in which the message was sent; None: no message was there, or it was predicted.
        stale: ticks from then to the reading, or to the coming of the target.
        learns: of a firing, whether it learns.
    """

    tick: int
    kind: str
    agent: str
    port: str | None = None
    sent: int | None = None
    stale: int | None = None
    learns: bool | None = None
    source: str | None = None  # of a reading: the output that sent the message
    to: str | None = None  # of what is sent: its readers


class EventLog:
    """The events of a run in the order in which they happened; `sorted` gives one that does not depend on threads."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.past = 0  # ticks of the episodes that have ended

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def of(self, kind: str, agent: str | None = None) -> list[Event]:
        """The events of one kind, perhaps of one agent.

        Raises:
            NetworkError: there is no such kind.
        """
        if kind not in KINDS:
            known = ", ".join(KINDS)
            near = nearest(str(kind), KINDS)
            raise NetworkError([f"there is no kind {kind!r}{near}; there are {known}"], "there are no such events")
        return [e for e in self.events if e.kind == kind and agent in (None, e.agent)]

    def fired(self, tick: int, agent: str, readings: Sequence[Reading], learns: bool) -> None:
        """Note a firing and what it read."""
        tick += self.past
        self.events.append(Event(tick, "fire", agent, learns=learns))
        for reading in readings:
            inbox = reading.inbox
            if inbox.link.outside:
                continue
            sent = None if reading.stale is None else tick - reading.stale
            source = str(inbox.link.source)
            self.events.append(Event(tick, "read", agent, inbox.sink.name, sent, reading.stale, source=source))

    def sent(self, tick: int, link: Link) -> None:
        """Note that a message was sent."""
        to = ", ".join(map(str, link.sinks))
        self.events.append(Event(tick + self.past, "send", link.source.agent or "", link.source.name, to=to))

    def answered(self, tick: int, agent: str, port: str, sent: int, used: bool) -> None:
        """Note that a message has been answered."""
        kind = "target" if used else "unused"
        self.events.append(Event(tick + self.past, kind, agent, port, sent + self.past, tick - sent))

    def sorted(self) -> list[Event]:
        """The events in an order that does not depend on the order of agents within a tick."""
        return sorted(self.events, key=lambda e: (e.tick, e.kind, e.agent, e.port or "", e.sent or 0, e.to or ""))

    def state(self) -> dict[str, Any]:
        """The log as plain data, for a checkpoint."""
        return {"past": self.past, "events": [_plain(e) for e in self.events]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.past, self.events = int(state["past"]), [Event(**e) for e in state["events"]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the events as JSON, one object for each.

        Raises:
            NetworkError: the file cannot be written.
        """
        _write(path, json.dumps([_plain(e) for e in self.sorted()], indent=1) + "\n")

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write the run for chrome://tracing or ui.perfetto.dev: a row for each agent, an arrow for each message.

        A tick is a millisecond.

        Raises:
            NetworkError: the file cannot be written.
        """
        agents = list(dict.fromkeys(e.agent for e in self.events))
        rows = {name: i for i, name in enumerate(agents, 1)}  # 0 is the idle thread to a viewer
        events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "network"}}]
        events += [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}}
            for name, row in rows.items()
        ]
        for number, event in enumerate(self.sorted()):
            events += _traced(event, rows, number)
        _write(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")


class NoLog:
    """Stands for the log of a network that keeps none. It is empty, and whatever is asked of it says so."""

    def __len__(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python looks for its own
            raise AttributeError(name)
        words = f"log.{name}: this network keeps no log; make it with dg.Network(log=True), or network(..., log=True)"
        raise NetworkError([words], "there are no events")

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)


def _write(path: Any, text: str) -> None:
    try:
        Path(path).write_text(text)
    except (OSError, TypeError, ValueError) as error:
        words = f"{path!r}: {error}; name a file in a folder that exists, 'run.json'"
        raise NetworkError([words], "the events cannot be written") from error


def _plain(event: Event) -> dict[str, Any]:
    return {key: value for key, value in asdict(event).items() if value is not None}


def _traced(event: Event, rows: dict[str, int], number: int) -> list[dict[str, Any]]:
    place = {"pid": 1, "tid": rows[event.agent], "ts": event.tick * TICK}
    if event.kind == "fire":
        return [{"ph": "X", "name": "fire" if event.learns else "fire, no update", "dur": TICK * 6 // 10, **place}]
    details = {"args": _plain(event)}
    if event.kind == "send":
        return [{"ph": "i", "s": "t", "name": f"sends {event.port}", **place, "ts": place["ts"] + TICK // 2, **details}]
    if event.kind in ("target", "unused"):
        words = f"target of {event.port}" if event.kind == "target" else f"{event.port} was not used"
        return [{"ph": "i", "s": "t", "name": words, **place, "ts": place["ts"] + TICK * 8 // 10, **details}]
    sender = rows.get((event.source or "").split(".")[0])
    if event.sent is None or sender is None:
        return []
    start = {"pid": 1, "tid": sender, "ts": event.sent * TICK + TICK // 2}
    name = {"name": event.source, "cat": "message", "id": number}
    end = {**place, "ts": place["ts"] + (TICK * 55 // 100 if event.stale == 0 else 1)}
    return [{"ph": "s", **name, **start, **details}, {"ph": "f", "bp": "e", **name, **end}]
