"""Cut a model into so many parts of even cost: where to cut is chosen here."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from ..errors import CutError, is_whole, nearest
from ..plan.partition import partition
from .candidates import COSTS, Line, Place
from .names import Edge

WIDER = 1.25  # so much larger the largest part may be for the sake of fewer values that cross
PLAIN = 2.0  # and so much for the sake of as many parts as were asked for, without branches beside them
TRIES = 4  # sets of places that are tried for that
LISTED = 8  # more parts than this are summed up in the note


def choose(
    graph: fx.Graph, parts: int, cost: str = "flops", max_crossing_bytes: int | None = None
) -> tuple[list[Edge], list[str]]:
    """The edges to cut for so many parts of even cost, in graph order, and a note on the balance.

        x ─► conv ─► bn ─► relu ─► conv ─► bn ─► add ─► relu ─► conv ─► ...
                              └───────────────────┘       │
                                                          └ one value crosses here, two inside the block

    The graph's order is taken for a line, with one candidate between two consecutive nodes that learn. Ties between
    places are broken by the fewest values that cross, the fewest bytes, the outermost module border, the latest
    position. Only candidates with few values are used, unless the largest part becomes a quarter larger by it.

    Args:
        parts, cost, max_crossing_bytes: as in `balanced`.

    Requires:
        The nodes say what `annotate` notes; for "time" also `node_seconds`.

    Guarantees:
        `graph` is unchanged.
        No other choice of these candidates has a cheaper largest part; see `Chain.divide` for what else is least.
        No cut lies inside an in-place write, and each part has a parameter to train.
        There are as many parts as asked for, but for branches that do not depend on one another; then a note says so.

    Raises:
        CutError: there are not so many places, or the request makes no sense. All misfits are listed.
    """
    if misfits := _misfits(parts, cost, max_crossing_bytes):
        raise CutError(misfits)
    if not any("flops" in node.meta for node in graph.nodes):
        raise CutError(["what nodes cost is measured on an example; pass example_args"])
    line = Line(graph, cost)
    places = line.places(max_crossing_bytes)
    if parts > len(places) + 1:
        raise CutError([_too_many(parts, max_crossing_bytes, len(places) + 1, line.places())])
    tries: list[tuple[list[Place], list[Edge], int]] = []
    for usable in _sets(line, places, parts):
        chosen = [usable[i] for i in line.chain(usable).divide(parts)]
        edges = line.cut(chosen)
        try:
            count = len(partition(graph, edges).parts)
        except CutError:
            count = 0  # one cannot be made; where no other set does better, `partition` says so
        tries.append((chosen, edges, count))
        if count == parts:
            break
    chosen, edges, count = min(tries, key=lambda attempt: attempt[-1] != parts)
    return edges, [_note(parts, cost, line.shares(chosen), count)]


def _misfits(parts: Any, cost: Any, most: Any) -> list[str]:
    misfits = []
    if not is_whole(parts, 1):
        misfits.append(f"{parts!r} is no number of parts; say 1 (no cut) or more")
    if cost not in COSTS:
        misfits.append(f"there is no cost {cost!r}; there are {', '.join(COSTS)}{nearest(str(cost), COSTS)}")
    if most is not None and not is_whole(most):
        misfits.append(f"{most!r} is no number of bytes")
    return misfits


def _too_many(parts: int, most: int | None, possible: int, places: Sequence[Place]) -> str:
    """Why there are not so many parts. `places` are all places, also those where too many bytes cross."""
    few = f"no more than {possible} {'part is' if possible == 1 else 'parts are'} possible"
    if parts > len(places) + 1:
        return f"{few}: each needs a parameter to train, and a place to cut behind it"
    least = min(place.bytes for place in places)
    return f"{few} where at most {most} bytes cross; the fewest bytes that cross anywhere are {least}"


def _sets(line: Line, places: list[Place], parts: int) -> Iterable[list[Place]]:
    """Sets of places to choose from: those that few values cross, as far as the balance allows; then narrower ones."""
    widths = sorted({place.values for place in places}) or [0]
    sets = [[place for place in places if place.values <= width] for width in widths]
    sets = [usable for usable in sets if len(usable) >= parts - 1]
    least = [line.chain(usable).least(parts) for usable in sets]
    narrow = next(i for i, cost in enumerate(least) if cost <= WIDER * least[-1])
    narrowest = next(i for i, cost in enumerate(least) if cost <= PLAIN * least[-1])
    return reversed(sets[max(narrowest, narrow + 1 - TRIES) : narrow + 1])


def _note(parts: int, cost: str, shares: Sequence[float], count: int) -> str:
    balance = ", ".join(f"{share:.0%}" for share in shares)
    if len(shares) > LISTED:
        balance = f"{max(shares):.1%} the largest, {1 / len(shares):.1%} on average"
    beside = f"; with what runs beside them {count} in all" if count not in (0, parts) else ""
    return f"{parts} part{'s' if parts > 1 else ''} by {cost}: {balance}{beside}"
