"""Windows that are stored until their sequences have ended, and then run again from the last to the first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..passes.sandbox.rng import random_state, set_random_state
from .carried_state import Place
from .layout import Layout
from .learner import Learned, Learner
from .options import Strengths
from .window import Window


@dataclass(frozen=True)
class Stored:
    """What a second run of a window needs: its inputs and the state in which it began, without a graph."""

    window: Window
    place: Place
    seen: Any  # the head's condition after the window
    random: dict[str, Any]
    learned: bool = False  # whether its first states are learned

    @classmethod
    def of(cls, window: Window, place: Place, seen: Any) -> "Stored":
        """What is stored of a window before it is run."""
        learned = any(isinstance(v, Tensor) and v.requires_grad for v in place.leaves)
        leaves = [v.detach() if isinstance(v, Tensor) else v for v in place.leaves]
        return cls(window, replace(place, leaves=leaves), seen, random_state(), learned)

    def begin(self, layout: Layout, first: Sequence[Any]) -> Place:
        """The place where it begins; learned first states keep their graph, whose parameters have not changed since."""
        born = self.place.fresh if self.place.born is None else self.place.born
        if not self.learned or born is None:
            return self.place
        return replace(self.place, leaves=layout.choose(born, first, self.place.leaves))


def sweep(
    learner: Learner, windows: Sequence[Stored], first: Sequence[Any], strengths: Strengths, look: bool
) -> Learned:
    """Run the windows again, the last one first, each with its graph alone; gradients add up.

        window 0 ◄─G1─ window 1 ◄─G2─ window 2          G = lambda * what came back + (1 - lambda) * estimate

    With lambda = 1 this is backprop through time over the whole sequence. Each run draws the random numbers that the
    first one drew. Returns the results of the first window.

    Source: Jaderberg et al. 2017, arXiv 1608.05343, supplement A (BP(lambda)).
    """
    now, later, learned = random_state(), None, None
    buffers = [(b, b.clone()) for b in learner.core.buffers()]  # running statistics have counted these windows already
    try:
        for stored in reversed(windows):
            set_random_state(stored.random)
            place = stored.begin(learner.layout, first)
            learned = learner.window(stored.window, place, first, stored.seen, strengths, later, look)
            later = learned.target
    finally:
        set_random_state(now)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    assert learned is not None, "there is a window to go through"
    return learned


def packed(windows: Sequence[Stored]) -> list[dict[str, Any]]:
    """The windows as plain containers of tensors, for a checkpoint."""
    return [
        {"window": vars(s.window), "place": vars(s.place), "seen": s.seen, "torch": s.random["torch"],
         "learned": s.learned}
        for s in windows
    ]  # fmt: skip


def unpacked(states: Sequence[dict[str, Any]]) -> list[Stored]:
    """The windows from what `packed` returned."""
    now = random_state()
    return [
        Stored(
            Window(**s["window"]), Place(**s["place"]), s["seen"], {**now, "torch": s["torch"]}, s.get("learned", False)
        )
        for s in states
    ]
