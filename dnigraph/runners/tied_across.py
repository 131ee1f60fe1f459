"""Weights that parts on several ranks share: each rank has a copy, and all make the same step with the same sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..engine.channel import Channel
from ..engine.updates.groups import Tied, finite
from .wire import NOTHING, VALUE, Frame


@dataclass(frozen=True)
class Share:
    """What one part gives to a step.

    Attributes:
        user: the part's number among those that share the weights.
        sound: whether all of its gradients in the group are finite, also those of weights that it does not share.
        gradients: of the shared weights, in their order.
    """

    batch: int
    user: int
    sound: bool
    gradients: tuple[Tensor | None, ...]


class TiedAcross(Tied):
    """As `Tied`, for parts on several ranks.

        rank 0   part_0 is through with a batch ─┐   ┌─ sum over part_0, part_1 ─ step
                                                 ├───┤      the same sum, state and step, bitwise
        rank 1   part_1 is through with a batch ─┘   └─ sum over part_0, part_1 ─ step

    One packet goes to each other rank in each tick. A rank steps when it has the gradients of all parts. Where answers
    come late that step is late, too, so that no rank waits for one that is not further behind than its answers.

    Args:
        tied: the group and the parts.
        shared: its weights that lie on several ranks.
        elsewhere: the parts of each other rank.
        to, back: channels to these ranks, and from them.
    """

    def __init__(
        self, tied: Tied, shared: Sequence[nn.Parameter], elsewhere: Mapping[int, set[str]],
        to: Mapping[int, Channel[list[Share]]], back: Mapping[int, Channel[list[Share]]],
    ):  # fmt: skip
        super().__init__(tied.group, tied.users)
        self._shared, self._elsewhere, self._to, self._back = tuple(shared), elsewhere, to, back
        self._unsent: list[Share] = []
        self._unsound = set[int]()  # batches in which some gradient is not finite
        self._sound = True  # those that were gathered

    def through(self, batch: int, user: str) -> None:
        """As in `Tied`; what it takes is sent at the end of the tick."""
        super().through(batch, user)
        kept = {p: own[user] for p, own in self._batches[batch].gradients.items() if user in own}
        share = Share(
            batch, self.users.index(user), finite(list(kept.values())), tuple(kept.get(p) for p in self._shared)
        )
        self._note(share)
        self._unsent.append(share)

    def gather(self, now: int, last: bool = False) -> bool:
        """As in `Tied`, with the gradients of the other ranks, which are waited for."""
        for channel in self._to.values():
            channel.put(self._unsent)
        self._unsent = []
        due = [seen for batch, seen in self._batches.items() if batch <= now - self.late]
        for rank, channel in self._back.items():
            while not last and not all(seen.users >= self._elsewhere[rank] for seen in due):
                self._hear(channel.get())
            for packet in channel.rest() if last else ():
                self._hear(packet)
        before = set(self._batches)
        gathered = super().gather(now, last)
        through = before - set(self._batches)
        self._sound = not self._unsound & through
        self._unsound -= through
        return gathered

    def step(self) -> bool:
        """As in `Tied`. All ranks step, or none: each knows its own gradients, and what the others say of theirs."""
        if self._sound:
            return super().step()
        self.group.forget()
        return False

    def _hear(self, packet: list[Share]) -> None:
        for share in packet:
            user = self.users[share.user]
            seen = self._seen(share.batch)
            seen.users.add(user)
            for parameter, gradient in zip(self._shared, share.gradients, strict=True):
                if gradient is not None:
                    seen.gradients.setdefault(parameter, {})[user] = gradient.to(parameter.device)
            self._note(share)

    def _note(self, share: Share) -> None:
        if not share.sound:
            self._unsound.add(share.batch)


def frames_of(shares: list[Share]) -> list[Frame]:
    """The frames of a packet: for each share one that says what it is, and one for each gradient."""
    frames = []
    for share in shares:
        frames.append(Frame(VALUE, 0, sent=share.batch, wants=int(share.sound), value=share.user))
        frames += [Frame(VALUE, 0, sent=share.batch, value=gradient) for gradient in share.gradients]
    return frames or [Frame(NOTHING, 0)]


def shares_of(frames: list[Frame], count: int) -> list[Share]:
    """The packet of these frames; `count`: the shared weights."""
    if frames[0].kind == NOTHING:
        return []
    shares = []
    for i in range(0, len(frames), count + 1):
        head, *gradients = frames[i : i + 1 + count]
        shares.append(Share(head.sent, head.value, bool(head.wants), tuple(frame.value for frame in gradients)))
    return shares
