"""The place in a stream between two windows: the state that is carried over, and which sequences begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layout import Layout
from .recurrent_error import RecurrentError
from .window import Window


@dataclass(frozen=True)
class Place:
    """What one window passes on to the next."""

    leaves: list[Any]  # of the state, detached; first states that learn keep their graph
    fresh: Tensor | None  # bool [batch]: which sequences begin here; None: none
    seen: Any  # the condition of the head: a label or inputs
    view: Tensor | None = None  # the head's view of the state, if it has been computed
    born: Tensor | None = (
        None  # bool [batch]: sequences that begin in `initial`, not in a state given to reset(); None: all
    )

    def behind_ends(self) -> bool:
        """Whether all sequences begin here."""
        return self.fresh is not None and bool(self.fresh.all())


def begin(
    layout: Layout, place: Place | None, given: Sequence[Any] | None, first: Sequence[Any], window: Window
) -> Place:
    """The place where a window begins. Sequences that are reset, or that have ended, begin in the state `first`.

    Args:
        given: leaves of the state that the user gave to reset(); None: sequences begin in `first`.

    Raises:
        RecurrentError: the stream has another number of sequences.
    """
    if given is not None and (known := layout.batch(given)) != window.batch:
        raise RecurrentError(
            [f"the window has {window.batch} sequences, the state that was given has {known}"],
            "give reset(...) a state of as many sequences",
        )
    if place is None:
        device = layout.live_leaves(first)[0].device
        all_anew = torch.ones(window.batch, dtype=torch.bool, device=device)
        if given is None or window.reset is None:
            return Place(list(first if given is None else given), all_anew, None)
        return Place(layout.choose(window.reset[0], first, given), all_anew, None, born=window.reset[0])
    if (known := layout.batch(place.leaves)) != window.batch:
        raise RecurrentError(
            [f"the window has {window.batch} sequences, the stream has {known}"],
            "call rnn.reset() before another stream, or end this one: rnn.step(..., ends=True)",
        )
    fresh = place.fresh
    if window.reset is not None:
        anew = window.reset[0]
        fresh = anew if fresh is None else fresh | anew
    if fresh is None:
        return place
    return Place(layout.choose(fresh, first, place.leaves), fresh, place.seen, None)


def behind(window: Window, last: Sequence[Any], seen: Any, view: Tensor | None) -> Place | None:
    """The place after a window; None if all sequences have ended, so that a batch of another size may follow."""
    if window.all_end:
        return None
    return Place([v.detach() if isinstance(v, Tensor) else v for v in last], window.ends, seen, view)


def mended(layout: Layout, place: Place | None) -> Place | None:
    """The place with sequences reset whose state is not finite; they would stay so for ever."""
    if place is None:
        return None
    lost = ~layout.rows(layout.live_leaves(place.leaves)).isfinite().all(-1)
    seen = place.seen
    if isinstance(seen, Tensor) and seen.is_floating_point():
        seen = seen.nan_to_num(0.0, 0.0, 0.0)  # it gets no gradient, but 0 * nan is nan
    return Place(place.leaves, lost if place.fresh is None else place.fresh | lost, seen)
