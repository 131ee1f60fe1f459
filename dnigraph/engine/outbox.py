"""The sender's end of a link: its boundary, and the messages that have not been answered yet."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..boundaries import Boundary, Seen, Visit
from ..heads.seen import Inputs, Outputs
from .arrivals import moved
from .channel import Answer, Channel, Line, Message
from .description.agent import Agent
from .description.link import Link
from .firing import Sent
from .tick import Tick
from .updates.groups import Group, finite


class Outbox:
    """Sends an output's values, gives the sender a gradient at once, and lets the head learn when answers come.

        value ─► boundary ─► estimate (at once)        answers of all receivers ─► target ─► the head learns
          └────► message to each receiver

    An answer belongs to the message of one tick, however late it comes: the head is then given that message's value
    and label again.

    Args:
        boundary: None where no gradient can come back.
        delay: ticks from sending to arriving.
        readers: the agents that receive the messages.
        group: the head's parameters and optimiser; None: it does not learn.
    """

    def __init__(
        self, link: Link, boundary: Boundary | None, delay: int, readers: Sequence[Agent], group: Group | None
    ):
        self.link, self.boundary, self.delay, self.readers, self.group = link, boundary, delay, readers, group
        self.under_way: list[deque[list[Answer]]] = [deque() for _ in readers]  # taken from the channels, not yet heard
        self._unheard = [0] * len(readers)  # of how many ticks the answers are on their way, here or in the channels
        needs = frozenset() if boundary is None else frozenset(boundary.needs)
        self.looks_around = not needs <= {"label"}  # the boundary looks at more than the label
        self._needs_error = "error" in needs  # which is there when all agents have fired
        self._heard = False  # whether the answers of this tick have been heard early
        self.ordered = False  # whether messages are read, and answered, within the tick in which they are sent
        self.messages: Sequence[Channel[Message | None]] = [Line() for _ in readers]
        self.answers: Sequence[Channel[list[Answer]]] = [Line() for _ in readers]
        self.sent: dict[int, Sent] = {}
        self.settled: list[tuple[int, bool]] = []  # messages answered in this tick; True: by a gradient
        self._now: Message | None = None

    @property
    def port(self) -> str:
        """The name of the output."""
        return self.link.source.name

    def in_vain(self, tick: Tick) -> bool:
        """Whether no receiver will read what is sent in this tick, so that no gradient comes back for it."""
        if not tick.ends or (self.boundary is not None and not self.boundary.from_consumers):
            return False
        return self.delay > 0 or not any(reader.reads(tick.number) for reader in self.readers)

    def needs_label(self, tick: Tick) -> bool:
        """Whether the boundary will look at the label of what is sent in this tick."""
        boundary = self.boundary
        if boundary is None or not (boundary.training and "label" in boundary.needs):
            return False
        return boundary.may_wait or not self.in_vain(tick)

    def harmed_by(self, value: Any) -> bool:
        """Whether a value is not finite, and would make what the boundary has learned, or averages, so."""
        if self.boundary is None or not isinstance(value, Tensor) or not value.is_floating_point() or finite([value]):
            return False
        if next(self.boundary.parameters(), None) is None:
            return False
        return bool(value.isnan().any()) or not self.boundary.takes_infinite()

    def pass_on(self, tick: int, value: Any) -> None:
        """Prepare a message from which nothing learns."""
        self._now = Message(tick, value.detach() if isinstance(value, Tensor) else value, False)

    def send(self, tick: int, value: Any, seen: Seen, in_vain: bool = False) -> Sent | None:
        """Prepare the message for `push`. Returns it with the visit of the boundary, if something learns from it."""
        boundary = self.boundary
        self.pass_on(tick, value)
        if boundary is None or not isinstance(value, Tensor) or not boundary.learns(value):
            return None
        if in_vain and not boundary.may_wait:
            boundary.pass_last()
            return None
        with boundary.context.showing(seen):
            visit = boundary.meet(value)
        if in_vain and visit.now is not None:
            return None  # an oracle's firing stays queued and is settled at the end of the episode
        self.sent[tick] = sent = Sent(visit, value.detach(), seen)
        self._now = Message(tick, sent.value, True)
        return sent

    def push(self) -> None:
        """Send this tick's message, or None if there is none."""
        message, self._now, self._heard = self._now, None, False
        for channel in self.messages:
            channel.put(message)

    def hear(self, within_tick: bool) -> None:
        """Take the receivers' answers: within the tick if the link is read within it, else when the tick closes."""
        if self.ordered != within_tick or self._heard:
            return
        for number, channel in enumerate(self.answers):
            if self._unheard[number] == self.link.back:
                packets = self.under_way[number]
                self._note_all(number, packets.popleft() if packets else channel.get())
            else:
                self._unheard[number] += 1

    def hear_early(self) -> None:
        """Take the answers to this tick's message, if all receivers have sent theirs: it holds graphs until then.

        A line's packets come from this very thread, so that a look waits for nobody.
        """
        here = all(isinstance(channel, Line) for channel in self.answers)
        if not self.ordered or self.link.back or self._heard or self._needs_error or not here:
            return
        for packets, channel in zip(self.under_way, self.answers, strict=True):
            packets.extend(channel.rest())
        if all(self.under_way):
            self._heard = True
            for number, packets in enumerate(self.under_way):
                self._note_all(number, packets.popleft())

    def pull(self) -> None:
        """Between two ticks: take all answers from the channels. They are heard when it is time."""
        for packets, channel in zip(self.under_way, self.answers, strict=True):
            packets.extend(channel.rest())
        self._unheard = [len(packets) for packets in self.under_way]

    def flush(self) -> None:
        """Hear at once what would come later."""
        self.pull()
        for number, packets in enumerate(self.under_way):
            while packets:
                self._note_all(number, packets.popleft())
        self._unheard = [0] * len(self.readers)

    def clear(self) -> None:
        """Forget all messages and answers."""
        self.lie_aside()

    def lie_aside(self) -> "tuple[dict[int, Sent], list[deque[list[Answer]]]]":
        """Remove and return all messages and answers."""
        self.pull()
        kept = self.sent, self.under_way
        self.take_back({}, [deque() for _ in self.readers])
        return kept

    def take_back(self, sent: dict[int, Sent], under_way: list[deque[list[Answer]]]) -> None:
        """Have these messages and answers, and no others."""
        self.pull()
        self.sent, self.under_way = sent, under_way
        self._unheard = [len(packets) for packets in under_way]

    def give_up(self) -> bool:
        """Take missing answers as no gradient. Returns whether any were missing."""
        lost = list(self.sent)
        for tick in lost:
            for number in range(len(self.messages)):
                if tick in self.sent and number not in self.sent[tick].answers:
                    self._note(number, Answer(tick, None))
        return bool(lost)

    def drop(self) -> None:
        """After a failed tick: drop half-made gradients and graphs, and hear the answers under way."""
        if self.group is not None:
            self.group.forget()
        self._now = None
        self.pull()
        for number, packets in enumerate(self.under_way):
            while len(packets) > self.link.back:
                self._note_all(number, packets.popleft())
        self._unheard = [len(packets) for packets in self.under_way]
        self.forget_graphs()  # the weights may have moved since

    def forget_graphs(self) -> None:
        """At the end of a tick, unanswered messages keep only value and what was seen, and no graph of the head."""
        for sent in self.sent.values():
            if sent.firing is None:
                sent.visit = None

    def step(self) -> bool:
        """Step the boundary's optimiser, if it has new gradients. Returns False if these were not finite.

        A head's come with the answers, those of a local loss when the sender learns.
        """
        if self.group is None or all(p.grad is None for p in self.group.parameters):
            return True
        return self.group.update_if_finite()

    def _note_all(self, number: int, answers: list[Answer]) -> None:
        for answer in answers:
            self._note(number, answer)

    def _note(self, number: int, answer: Answer) -> None:
        sent = self.sent.get(answer.sent)
        if sent is None:
            return
        sent.answers[number] = answer.gradient
        if len(sent.answers) == len(self.messages):
            del self.sent[answer.sent]
            target = sent.target()
            self.settled.append((answer.sent, target is not None))
            self._settle(sent, target)

    def _settle(self, sent: Sent, target: Tensor | None) -> None:
        if sent.visit is not None:
            sent.settle(sent.visit, target)
        elif target is not None and self.boundary is not None:
            sent.settle(self._again(self.boundary, sent), target)

    def _again(self, boundary: Boundary, sent: Sent) -> Visit:
        with torch.enable_grad(), boundary.context.showing(sent.seen):
            return boundary.meet(sent.value.detach().requires_grad_(), again=True)

    # ---- checkpoints

    def state(self) -> dict[str, Any]:
        """The unanswered messages between two ticks, and the answers under way, as plain data."""
        self.pull()
        sent = {
            tick: {
                "value": sent.value,
                "label": sent.seen.label,
                "inputs": dict(sent.seen.inputs),
                "errors": None if sent.seen.outputs is None else sent.seen.outputs.gradients,
                "answers": sent.answers,
            }
            for tick, sent in self.sent.items()
        }
        under_way = [[[(a.sent, a.gradient) for a in p] for p in packets] for packets in self.under_way]
        return {"sent": sent, "under way": under_way}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        state = state if self.boundary is None else moved(state, self.boundary.spec.device)
        sent = {tick: Sent(None, s["value"], _seen(s), answers=dict(s["answers"])) for tick, s in state["sent"].items()}
        self.take_back(sent, [deque([Answer(*a) for a in p] for p in packets) for packets in state["under way"]])


def _seen(state: dict[str, Any]) -> Seen:
    """What was seen when a message was sent, from a checkpoint."""
    return Seen(state["label"], Inputs(state["inputs"]), Outputs(state["errors"]))
