"""The runner with several processes: each has some of the actors, and links lead from process to process.

    rank 0   begin ─ end ─ close │ begin ─ ...        an actor does in each tick what it does in one process; only the
               ↓ message  ↑ answer                    channel of a link whose ends lie apart is another one
    rank 1     begin ─ end ─ close │ begin ─ ...

Which packets an actor waits for depends on the clock only, so the numbers are bitwise those of one process.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..engine.actor import Actor
from ..engine.channel import Answer, Message
from ..engine.inbox import Inbox
from ..engine.outbox import Outbox
from ..engine.running_network import RunningNetwork
from ..engine.tick import Tick
from ..engine.updates.groups import Tied
from .post import Post
from .roster import DistributedError
from .scheduler import Runner, run_tick
from .tied_across import TiedAcross, frames_of, shares_of
from .wire import NOTHING, VALUE, Frame, Stamp

T = TypeVar("T")
PHASES = ("a step", "settle()")


@dataclass
class Rank:
    """What the wires of one rank share.

    Attributes:
        place: the rank of each agent.
        stamp: what this rank is doing.
        patience: seconds that a packet of a rank that lives is waited for.
    """

    rank: int
    place: Mapping[str, int]
    post: Post
    patience: float
    stamp: Stamp = field(default_factory=Stamp)
    wired: int = 0  # channels so far: all ranks make the same ones, in the same order
    broken: bool = False  # a tick has failed here

    def runner(self) -> Runner:
        """The runner that calls the actors of this rank."""
        return Runner(self._take, self._tick, self._settle)

    def _take(self, network: RunningNetwork) -> RunningNetwork:
        """The actors of this rank, with wires to all others."""
        own = {name: actor for name, actor in network.actors.items() if self.place[name] == self.rank}
        weights = {name: set(actor.agent.module.parameters()) for name, actor in network.actors.items()}
        for number, outbox in network.outboxes.items():
            for i in range(len(outbox.link.sinks)):
                self._connect(outbox, i, network.inboxes[number, i])
        return replace(
            network,
            actors=own,
            tied=[tied for group in network.tied for tied in self._tie(group, own, weights)],
            inboxes={end: inbox for end, inbox in network.inboxes.items() if inbox.sink.agent in own},
            outboxes={n: outbox for n, outbox in network.outboxes.items() if outbox.link.source.agent in own},
        )

    def _tie(self, tied: Tied, own: Mapping[str, Actor], weights: Mapping[str, set[nn.Parameter]]) -> list[Tied]:
        """What this rank has of a group that several agents use, if it has any of them.

        Args:
            weights: of each agent.
        """
        number, self.wired = self.wired, self.wired + 1
        ranks: dict[int, set[str]] = {}
        for user in tied.users:
            ranks.setdefault(self.place[user], set()).add(user)
        mine = ranks.pop(self.rank, set())
        if not mine or not ranks:
            return [tied] if mine else []
        held = {p: {self.place[user] for user in tied.users if p in weights[user]} for p in tied.group.parameters}
        shared = [parameter for parameter, where in held.items() if len(where) > 1]
        read = partial(shares_of, count=len(shared))
        what = f"the gradient of what {' and '.join(tied.users)} share"
        to = {rank: Wire(self, rank, number, what, frames_of, read) for rank in ranks}
        back = {rank: Wire(self, rank, number, what, frames_of, read, asked=to[rank]) for rank in ranks}
        across = TiedAcross(tied, shared, ranks, to, back)
        for user in mine:
            own[user].tied = [across if one is tied else one for one in own[user].tied]
        return [across]

    def _connect(self, outbox: Outbox, i: int, inbox: Inbox) -> None:
        """Lay wires between two ends that lie on two ranks, if one of them is this one."""
        sender, reader = self.place[outbox.link.source.agent or ""], self.place[inbox.sink.agent or ""]
        number, self.wired = self.wired, self.wired + 2
        if sender == reader or self.rank not in (sender, reader):
            return
        facts = f"of {outbox.link.name}"
        if self.rank == sender:
            device = None if outbox.boundary is None else outbox.boundary.spec.device
            messages: Wire[Message | None] = Wire(self, reader, number, f"the message {facts}", _of_message, _message)
            answers = Wire(self, reader, number + 1, f"the answer {facts}", _of_answers, _answers, device, messages)
            outbox.messages = [*outbox.messages[:i], messages, *outbox.messages[i + 1 :]]
            outbox.answers = [*outbox.answers[:i], answers, *outbox.answers[i + 1 :]]
        else:
            like = inbox.example
            device = None if like is None else like.device
            check = Expected(f"{inbox.sink}, which {self.post.roster.names[sender]} sends", like)
            inbox.messages = Wire(
                self, sender, number, f"the message {facts}", _of_message, _message, device, check=check
            )
            inbox.answers = Wire(self, sender, number + 1, f"the answer {facts}", _of_answers, _answers)

    def _tick(self, network: RunningNetwork, order: Sequence[str], tick: Tick) -> None:
        with self._telling():
            run_tick(network, [name for name in order if name in network.actors], tick)

    def _settle(self, network: RunningNetwork, order: Sequence[str], tick: int) -> None:
        """As the scheduler's, in one wave: no link goes back, so an actor that is told all hears no more later."""
        actors = [network.actors[name] for name in order if name in network.actors]
        with self._telling():
            for actor in actors:
                for inbox in actor.inboxes:
                    if not inbox.link.outside:
                        inbox.pull()
                    inbox.close()
                for box in actor.outboxes:
                    box.push()
            for actor in reversed(actors):
                actor.settle(tick)
                actor.give_up(tick)
                actor.answer()
            for actor in actors:
                actor.step(tick)
            network.step_tied(tick, last=True)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """If the block fails, all ranks are told: what it has sent cannot be taken back."""
        if self.broken:
            self.post.roster.check()
        try:
            yield
        except BaseException as error:
            self.broken = True
            if not isinstance(error, DistributedError):
                words = next(iter(str(error).splitlines()), "")
                doing = self.post.roster.doing
                self.post.roster.fail(
                    f"{self.post.roster.names[self.rank]} failed in {doing}: {type(error).__name__}: {words}"
                )
            raise


@dataclass(frozen=True)
class Expected:
    """What a value that comes must be like, before a part reads it. The sizes of its dimensions may change."""

    what: str
    like: Any

    def look(self, value: Any) -> None:
        """One look.

        Raises:
            DistributedError: it is of another kind.
        """
        if isinstance(self.like, Tensor) and (
            not isinstance(value, Tensor) or (value.dtype, value.dim()) != (self.like.dtype, self.like.dim())
        ):
            raise DistributedError(f"{self.what} is {_kind(value)} now, and was {_kind(self.like)} in the first step")


class Wire(Generic[T]):
    """A channel to or from an actor in another process.

    Args:
        peer: its rank.
        number: of the channel.
        what: is carried, for errors.
        frames: of a packet; packet: of frames.
        device: where values are to be; None: on the CPU.
        asked: of answers: the wire of the messages, for each of which one packet comes back.
    """

    def __init__(
        self, rank: Rank, peer: int, number: int, what: str, frames: Callable[[T], list[Frame]],
        packet: Callable[[list[Frame]], T], device: torch.device | None = None, asked: "Wire[Any] | None" = None,
        check: Expected | None = None,
    ):  # fmt: skip
        self.rank, self.peer, self.number, self.what = rank, peer, number, what
        self._frames, self._packet, self._device, self._asked, self._check = frames, packet, device, asked, check
        self.count = 0  # packets that were put or taken

    def put(self, packet: T) -> None:
        """Send a packet."""
        frames = self._frames(packet)
        for i, frame in enumerate(frames):
            left = len(frames) - 1 - i
            self.rank.post.send(self.peer, replace(frame, channel=self.number, stamp=self.rank.stamp, left=left))
        self.count += 1

    def get(self) -> T:
        """Take the oldest packet, when it has come.

        Raises:
            DistributedError: it will not come, or the other rank does something else than this one.
        """
        frames = [self._take()]
        while frames[-1].left:
            frames.append(self._take())
        self.count += 1
        return self._packet(frames)

    def rest(self) -> list[T]:
        """Take all packets that are on their way, when they have come."""
        if self._asked is None or self.rank.broken:
            return []
        return [self.get() for _ in range(self._asked.count - self.count)]

    def _take(self) -> Frame:
        rank = self.rank
        frame = rank.post.take(self.peer, self.number, self.what, rank.patience)
        if self._asked is None:
            self._compare(frame.stamp, rank.stamp)
        if self._check is not None and frame.kind == VALUE:
            self._check.look(frame.value)
        if self._device is not None and isinstance(frame.value, Tensor):
            return replace(frame, value=frame.value.to(self._device))
        return frame

    def _compare(self, there: Stamp, here: Stamp) -> None:
        names = self.rank.post.roster.names
        one, other = names[self.peer], names[self.rank.rank]
        wrong = []
        if (there.step, there.phase) != (here.step, here.phase):
            at = [f"{PHASES[s.phase]} after {s.step} steps" for s in (there, here)]
            wrong.append(f"{one} is in {at[0]}, {other} in {at[1]}: make the same calls on all ranks")
        elif there.way != here.way:
            wrong.append(f"{one} takes another way through the model's code than {other}, in step {here.step + 1}")
        elif there.inputs != here.inputs or (there.label != here.label and there.label and here.label):
            what = "inputs" if there.inputs != here.inputs else "labels"
            words = "all ranks read the same batches: give their loaders one seed"
            wrong.append(f"{one} and {other} were given other {what} in step {here.step + 1}; {words}")
        if wrong:
            self.rank.post.roster.fail(wrong[0])
            self.rank.post.roster.check()


def _of_message(message: Message | None) -> list[Frame]:
    if message is None:
        return [Frame(NOTHING, 0)]
    return [Frame(VALUE, 0, sent=message.sent, wants=int(message.wants), value=message.value)]


def _message(frames: list[Frame]) -> Message | None:
    (frame,) = frames
    return None if frame.kind == NOTHING else Message(frame.sent, frame.value, bool(frame.wants))


def _of_answers(answers: list[Answer]) -> list[Frame]:
    return [Frame(VALUE, 0, sent=a.sent, value=a.gradient) for a in answers] or [Frame(NOTHING, 0)]


def _answers(frames: list[Frame]) -> list[Answer]:
    return [Answer(frame.sent, frame.value) for frame in frames if frame.kind == VALUE]


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
