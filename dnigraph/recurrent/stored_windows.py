"""Windows that are stored until their sequences have ended, and then run again from the last to the first.

    windows     w0          w1          w2
    sequence 0  a a a ─ a   a a b b   b b b b      a has ended: it learns in the next sweep, b is kept until it ends
    sequence 1  c c c   c   c c c c   c c c c ┤    c has ended

A sweep comes when as many sequences have ended as there are side by side, or all of them end with one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..passes.sandbox.rng import random_state, set_random_state
from .carried_state import Place
from .credit import Truth
from .layout import Layout
from .learner import Learned, Learner, Settling
from .options import Strengths
from .window import Window


@dataclass(frozen=True)
class Stored:
    """What a second run of a window needs: its inputs and the state in which it began, without a graph."""

    window: Window
    place: Place
    seen: Any  # the head's condition after the window
    random: dict[str, Any]
    share: float  # of the true gradient at its end
    learned: bool = False  # whether its first states are learned
    finished: int = 0  # sequences that ended with this window, or in it, and wait for a sweep
    settled: Tensor | None = None  # bool [time, batch]: entries that a sweep has learned from; None: none

    @classmethod
    def of(cls, window: Window, place: Place, seen: Any, share: float) -> "Stored":
        """What is stored of a window before it is run."""
        learned = any(isinstance(v, Tensor) and v.requires_grad for v in place.leaves)
        leaves = [v.detach() if isinstance(v, Tensor) else v for v in place.leaves]
        return cls(window, replace(place, leaves=leaves), seen, random_state(), share, learned)

    def begin(self, layout: Layout, first: Sequence[Any]) -> Place:
        """The place where it begins; learned first states keep their graph, whose parameters have not changed since."""
        born = self.place.fresh if self.place.born is None else self.place.born
        if not self.learned or born is None:
            return self.place
        return replace(self.place, leaves=layout.choose(born, first, self.place.leaves))


def count_finished(window: Window, place: Place, before: Window | None) -> int:
    """The number of sequences of which this window shows that they have ended: with it, inside it, or right before it.

    Args:
        before: the stored window before it; None: there is none.
    """
    count = 0 if window.ends is None else int(window.ends.sum())
    if window.reset is not None:
        count += int(window.reset[1:].any(0).sum())
    if place.fresh is not None and before is not None:
        cut_off = place.fresh if before.ends is None else place.fresh & ~before.ends
        count += int(cut_off.sum())
    return count


def settlings(windows: Sequence[Stored]) -> list[Settling]:
    """Which entries of each window belong to sequences that have ended since the last sweep, window by window."""
    found: list[Settling] = []
    closed: Any = None  # bool [batch]: sequences that have ended, seen from behind
    follows: Any = None  # those that go on, over the window's end, with entries that learn now
    for stored in reversed(windows):
        window, fresh = stored.window, stored.place.fresh
        device = _device(window)
        none = torch.zeros(window.batch, dtype=torch.bool, device=device)
        closed = none if closed is None else closed
        closed = closed if window.ends is None else closed | window.ends
        entries = closed.expand(window.length, -1)
        if window.reset is not None:
            later_resets = window.reset.flip(0).cumsum(0).flip(0) - window.reset.long()  # behind each step
            inside = later_resets > 0
            entries = entries | inside
            closed = closed | window.reset[1:].any(0)
        entries = entries if stored.settled is None else entries & ~stored.settled
        crossing = entries[0] if fresh is None else entries[0] & ~fresh
        found.append(Settling(entries, none if follows is None else follows, crossing))
        closed = closed if fresh is None else closed | fresh
        follows = crossing
    return found[::-1]


def sweep(
    learner: Learner, windows: Sequence[Stored], first: Sequence[Any], strengths: Strengths, look: bool
) -> tuple[Learned, list[Stored]]:
    """Run the windows again, the last one first, each with its graph alone; gradients add up.

        window 0 ◄─G1─ window 1 ◄─G2─ window 2          G = share * what came back + (1 - share) * estimate

    The share is lambda, each window's own. Where it is 1 everywhere, this is backprop through time over whole
    sequences, from the states that were stored. Each run draws the random numbers that the first one drew. Sequences
    that have not ended are left for a later sweep.

    Returns: the results of the first window, with the metrics of the last one that has some (the first has no target
    for the head), and the windows that are still needed.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, supplement A (BP(lambda)).
    """
    now, later, learned, metrics = random_state(), None, None, dict[str, float]()
    buffers = [(b, b.clone()) for b in learner.core.buffers()]  # running statistics have counted these windows already
    shares = settlings(windows)
    whole = all(bool(share.entries.all()) for share in shares)
    try:
        for stored, share in zip(reversed(windows), reversed(shares), strict=True):
            set_random_state(stored.random)
            place = stored.begin(learner.layout, first)
            window = stored.window if whole else _masked(stored.window, share.entries, learner.core.batch_first)
            settling = None if whole else share
            learned = learner.window(
                window, place, first, stored.seen, strengths, Truth(later, stored.share), look, settling
            )
            later, metrics = learned.target, metrics or learned.metrics
    finally:
        set_random_state(now)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    assert learned is not None, "there is a window to go through"
    learned.metrics = metrics
    return learned, [] if whole else _still_needed(windows, shares)


def _still_needed(windows: Sequence[Stored], shares: Sequence[Settling]) -> list[Stored]:
    """The windows from the first one on that holds entries of a sequence that has not ended."""
    left: list[Stored] = []
    for stored, share in zip(windows, shares, strict=True):
        settled = share.entries if stored.settled is None else stored.settled | share.entries
        if left or not bool(settled.all()):
            left.append(replace(stored, settled=settled.clone(), finished=0))
    return left


def _masked(window: Window, entries: Tensor, batch_first: bool) -> Window:
    """The window in which only these entries count. Shapes: entries [time, batch]."""
    there = entries.t() if batch_first else entries
    return replace(window, mask=there if window.mask is None else window.mask & there)


def _device(window: Window) -> torch.device:
    return next(t.device for t in pytree.tree_leaves(window.x) if isinstance(t, Tensor))


def packed(windows: Sequence[Stored]) -> list[dict[str, Any]]:
    """The windows as plain containers of tensors, for a checkpoint."""
    return [
        {"window": vars(s.window), "place": vars(s.place), "seen": s.seen, "torch": s.random["torch"], "share": s.share,
         "learned": s.learned, "finished": s.finished, "settled": s.settled}
        for s in windows
    ]  # fmt: skip


def unpacked(states: Sequence[dict[str, Any]]) -> list[Stored]:
    """The windows from what `packed` returned."""
    now = random_state()
    return [
        Stored(
            Window(**s["window"]),
            Place(**s["place"]),
            s["seen"],
            {**now, "torch": s["torch"]},
            s["share"],
            s.get("learned", False),
            s.get("finished", 0),
            s.get("settled"),
        )
        for s in states
    ]
