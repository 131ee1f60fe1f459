"""Cut a model into so many parts of even cost: where to cut is chosen here."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from ..errors import CutError, nearest
from ..plan.partition import partition
from .candidates import Edge, Line, Place
from .cost import COSTS
from .specs import Balanced

WIDER = 1.25  # so much larger the largest part may be for the sake of fewer values that cross
PLAIN = 2.0  # and so much for the sake of as many parts as were asked for, without branches beside them
TRIES = 4  # sets of places that are tried for that
LISTED = 8  # more parts than this are summed up in the note


def choose(graph: fx.Graph, asked: Balanced) -> tuple[list[Edge], list[str]]:
    """The edges to cut for so many parts of even cost, in graph order, and a note on the balance.

        x ─► conv ─► bn ─► relu ─► conv ─► bn ─► add ─► relu ─► conv ─► ...
                              └───────────────────┘       │
                                                          └ one value crosses here, two inside the block

    The graph's order is taken for a line. Between each two of its nodes that learn there is one candidate for a cut:
    where the fewest values cross, of such places the one with the fewest bytes, at the border of the outermost modules,
    the last. Only candidates with few values are used, unless the largest part becomes a quarter larger by it.

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
    if misfits := _misfits(asked):
        raise CutError(misfits)
    if (edges := _known(graph, asked)) is not None:
        return edges, []
    if not any("flops" in node.meta for node in graph.nodes):
        raise CutError([f"cut {asked}: what nodes cost is measured on an example; pass example_args"])
    line = Line(graph, asked.cost)
    places = line.places(asked.max_crossing_bytes)
    if asked.parts > len(places) + 1:
        raise CutError([f"cut {asked}: {_too_many(asked, line, places)}"])
    tried: list[tuple[list[Place], list[Edge], int]] = []
    for usable in _sets(line, places, asked.parts):
        chosen = [usable[i] for i in line.chain(usable).divide(asked.parts)]
        edges = line.cut(chosen)
        count = asked.parts if line.holds_together(chosen) else len(partition(graph, edges).parts)
        tried.append((chosen, edges, count))
        if tried[-1][-1] == asked.parts:
            break
    chosen, edges, count = min(tried, key=lambda found: found[-1] != asked.parts)
    return edges, [_note(asked, line.shares(chosen), count)]


def _misfits(asked: Balanced) -> list[str]:
    found = []
    most = asked.max_crossing_bytes
    if not _is_number(asked.parts) or asked.parts < 1:
        found.append(f"cut {asked}: {asked.parts!r} is no number of parts; say 1 (no cut) or more")
    if asked.cost not in COSTS:
        near = nearest(str(asked.cost), COSTS)
        found.append(f"cut {asked}: there is no cost {asked.cost!r}; there are {', '.join(COSTS)}{near}")
    if most is not None and (not _is_number(most) or most < 0):
        found.append(f"cut {asked}: {most!r} is no number of bytes")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _known(graph: fx.Graph, asked: Balanced) -> list[Edge] | None:
    """Of the edges that were chosen for another graph those that this one has, if any."""
    if asked.places is None:
        return None
    called = {node.name: node for node in graph.nodes}
    edges = [(called[a], called[b]) for a, b in asked.places if a in called and b in called]
    return [(a, b) for a, b in edges if a in b.all_input_nodes] or ([] if not asked.places else None)


def _too_many(asked: Balanced, line: Line, places: Sequence[Place]) -> str:
    possible = "1 part is" if not places else f"{len(places) + 1} parts are"
    every = line.places()
    if asked.parts > len(every) + 1:
        return f"no more than {possible} possible: each needs a parameter to train, and a place to cut behind it"
    least = min(place.bytes for place in every)
    return (
        f"no more than {possible} possible where at most {asked.max_crossing_bytes} bytes cross; the fewest bytes that "
        f"cross anywhere are {least}"
    )


def _sets(line: Line, places: list[Place], parts: int) -> Iterable[list[Place]]:
    """Sets of places to choose from: those that few values cross, as far as the balance allows; then narrower ones."""
    widths = sorted({place.values for place in places}) or [0]
    sets = [[place for place in places if place.values <= width] for width in widths]
    sets = [usable for usable in sets if len(usable) >= parts - 1]
    least = [line.chain(usable).least(parts) for usable in sets]
    narrow = next(i for i, cost in enumerate(least) if cost <= WIDER * least[-1])
    narrowest = next(i for i, cost in enumerate(least) if cost <= PLAIN * least[-1])
    return reversed(sets[max(narrowest, narrow + 1 - TRIES) : narrow + 1])


def _note(asked: Balanced, shares: Sequence[float], count: int) -> str:
    said = ", ".join(f"{share:.0%}" for share in shares)
    if len(shares) > LISTED:
        said = f"{max(shares):.1%} the largest, {1 / len(shares):.1%} on average"
    beside = f"; with what runs beside them {count} in all" if count != asked.parts else ""
    return f"{asked.parts} part{'s' if asked.parts > 1 else ''} by {asked.cost}: {said}{beside}"
