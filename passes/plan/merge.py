"""Parts that nobody asked for, or that have nothing to learn, join a neighbour."""

from collections.abc import Iterable

import networkx as nx

from ..graph.facts import Facts
from .aliasing import Pair
from .availability import sources, targets
from .part_graph import Draft
from .units import Kind

NOTHING_BEFORE = "nothing before it has a parameter to train"
NOTHING_AFTER = "nothing after it has a parameter to train"


def prune(facts: Facts, found: Draft) -> None:
    """Merge the parts that need not be, and drop the cuts that separate nothing.

        asked    image ─► conv ─┼─► conv ─► add ─► fc        words come in on a lower level than add, but nobody
                          words ─► embed ────┘               asked to cut there: embed joins add
        asked    flatten ─┼─► fc1 ─┼─► fc2 ─┼─► softmax      flatten and softmax have nothing to learn
        made     flatten ───► fc1 ─┼─► fc2 ───► softmax

    A part joins another where that makes no cycle, if
        a gradient flows straight from the one to the other and no cut lies between;
        it has no trained parameter, and no gradient enters it (a prefix): it joins the first part behind it;
        it has none, and no part follows (a suffix): it joins the last part before it.
    The cuts between the two are dropped, and no others: a prefix of two towers joins one and leaves the other alone.

    Guarantees:
        The graph of the parts still has no cycle.
        Where no cut separates two parts any more, all is one part.
    """
    asked = found.cuts
    dropped: dict[Pair, str] = {}
    while _separating(found) and (join := _next(found)) is not None:
        part, into, reason = join
        dropped |= dict.fromkeys(_between(found.graph, part, into), reason)
        found.merge(part, into)
    found.cuts = _separating(found)
    if not found.cuts:
        for other in found.order()[1:]:
            found.merge(other, into=found.order()[0])
    found.notes += _notes(facts, found, asked - found.cuts, dropped)


def _separating(found: Draft) -> frozenset[Pair]:
    return frozenset().union(*(cuts for *_, cuts in found.graph.edges(data="cuts")))


def _next(found: Draft) -> tuple[int, int, str] | None:
    """A part that has to go, the part that it joins, and why."""
    graph, order = found.graph, found.order()
    for part in order:
        if (into := _unasked(graph, order, part)) is not None:
            return part, into, ""
    for at, part in enumerate(order):
        if graph.nodes[part]["trained"]:
            continue
        if (into := _as_prefix(graph, order, part)) is not None:
            return part, into, NOTHING_BEFORE
        if (into := _as_suffix(graph, order, part)) is not None:
            return part, into, NOTHING_AFTER
        if not any(data for *_, data in _edges(graph, part)):
            return part, order[at - 1 if at else 1], NOTHING_AFTER  # neighbours in the running order can be joined
    return None


def _unasked(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    uncut = {q for _, q, edge in graph.out_edges(part, data=True) if edge["gradient"] and not edge["cuts"]}
    return next((q for q in order if q in uncut and _side_by_side(graph, part, q)), None)


def _as_prefix(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    if any(gradient for *_, gradient in graph.in_edges(part, data="gradient")):
        return None
    behind = [q for q in order if graph.has_edge(part, q) and graph.edges[part, q]["data"]]
    others = [q for q in order if graph.has_edge(part, q) and q not in behind]
    return next((q for q in (*behind, *others) if behind and _side_by_side(graph, part, q)), None)


def _as_suffix(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    if any(data for *_, data in graph.out_edges(part, data="data")):
        return None
    before = [q for q in order if graph.has_edge(q, part) and graph.edges[q, part]["data"]]
    others = [q for q in order if graph.has_edge(q, part) and q not in before]
    return next((q for q in (*reversed(before), *reversed(others)) if before and _side_by_side(graph, q, part)), None)


def _side_by_side(graph: nx.DiGraph, a: int, b: int) -> bool:
    """Nothing has to run between two parts, so that they can become one."""
    return not any(nx.has_path(graph, other, b) for other in graph.successors(a) if other != b)


def _edges(graph: nx.DiGraph, part: int) -> Iterable[tuple[int, int, bool]]:
    return [*graph.in_edges(part, data="data"), *graph.out_edges(part, data="data")]


def _between(graph: nx.DiGraph, a: int, b: int) -> frozenset[Pair]:
    edges = [graph.edges[ends] for ends in ((a, b), (b, a)) if graph.has_edge(*ends)]
    return frozenset().union(*(edge["cuts"] for edge in edges))


def _notes(facts: Facts, found: Draft, lost: frozenset[Pair], dropped: dict[Pair, str]) -> list[str]:
    """One line for each place at which nothing of the user's cut remains."""
    before, behind = sources(found.units, found.part), targets(found.units, found.part)
    why: dict[int, str] = {}
    for a, b in sorted(lost):
        source, target = before[found.units.of[a]], behind[found.units.of[b]]
        if found.units.kinds[found.units.of[a]] is Kind.FIXED:
            reason = "each part makes its own of what is made of weights and constants alone"
        elif not source or not target:
            reason = "no gradient crosses there"
        else:
            reason = dropped.get((a, b), "both its sides are one part")
        why.setdefault(a, reason)
    kept = {a for a, _ in found.cuts}
    return [f"cut after '{facts[a].name}' dropped: {reason}" for a, reason in why.items() if a not in kept]
