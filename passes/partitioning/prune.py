"""Parts that have nothing to learn, at the ends of a model or beside it, join a neighbour."""

from collections.abc import Iterable

import networkx as nx

from .facts import Facts
from .order import Draft, merge, reach
from .ties import Pair

NOTHING_BEFORE = "nothing before it has a parameter to train"
NOTHING_AFTER = "nothing after it has a parameter to train"


def prune(facts: Facts, found: Draft) -> Draft:
    """The draft without parts that have no trained parameter, where they can go elsewhere.

        flatten ─┼─► fc1 ─┼─► fc2 ─┼─► softmax        before
        flatten ───► fc1 ─┼─► fc2 ───► softmax        after

    A part without trained parameters
        that no cut separates from the only part behind it joins that part;
        that no gradient enters (a prefix) joins the first part behind it;
        that no part follows (a suffix) joins the last part before it.
    The cuts between the two are dropped, and no others: a prefix of two towers joins one and leaves the other alone.

    Guarantees:
        The graph of the parts still has no cycle.
        Where no cut separates two parts any more, all is one part.
    """
    dropped: dict[Pair, str] = {}
    while (pair := _next(found)) is not None:
        part, into, reason = pair
        between = _between(found.graph, part, into)
        dropped |= dict.fromkeys(between, reason)
        merge(found, part, into)
    cuts = _separating(found)
    if not cuts and len(found.graph) > 1:
        first, *others = found.order()
        for other in others:
            merge(found, other, first)
    notes = [*found.notes, *_notes(facts, found, cuts, dropped)]
    return Draft(found.units, cuts, found.part, found.graph, notes)


def _next(found: Draft) -> tuple[int, int, str] | None:
    order = found.order()
    for at, part in enumerate(order):
        if found.graph.nodes[part]["trained"] or len(order) == 1:
            continue
        if (choice := _prefix(found.graph, order, part)) is not None:
            return part, choice, NOTHING_BEFORE
        if (choice := _suffix(found.graph, order, part)) is not None:
            return part, choice, NOTHING_AFTER
        if not any(data for *_, data in _edges(found.graph, part)):
            return part, order[at - 1] if at else order[1], "nothing is computed there"  # neighbours can always be joined
    return None


def _prefix(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    behind = [q for q in order if graph.has_edge(part, q) and graph.edges[part, q]["data"]]
    uncut = len(behind) == 1 and not graph.edges[part, behind[0]]["cuts"]
    entered = any(gradient for *_, gradient in graph.in_edges(part, data="gradient"))
    if entered and not uncut:
        return None
    return next((q for q in behind if _is_only_way(graph, part, q)), None)


def _suffix(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    if any(data for *_, data in graph.out_edges(part, data="data")):
        return None
    before = [q for q in order if graph.has_edge(q, part) and graph.edges[q, part]["data"]]
    return next((q for q in reversed(before) if _is_only_way(graph, q, part)), None)


def _is_only_way(graph: nx.DiGraph, a: int, b: int) -> bool:
    """No third part runs between two neighbours, so that they can become one."""
    return not any(nx.has_path(graph, other, b) for other in graph.successors(a) if other != b)


def _edges(graph: nx.DiGraph, part: int) -> Iterable[tuple[int, int, bool]]:
    return [*graph.in_edges(part, data="data"), *graph.out_edges(part, data="data")]


def _between(graph: nx.DiGraph, a: int, b: int) -> frozenset[Pair]:
    none: dict[str, frozenset[Pair]] = {"cuts": frozenset()}
    return frozenset(graph.get_edge_data(a, b, none)["cuts"] | graph.get_edge_data(b, a, none)["cuts"])


def _separating(found: Draft) -> frozenset[Pair]:
    """The cuts whose two sides are different parts."""
    return frozenset().union(*(cuts for *_, cuts in found.graph.edges(data="cuts")))


def _notes(facts: Facts, found: Draft, cuts: frozenset[Pair], dropped: dict[Pair, str]) -> list[str]:
    """One line for each place at which nothing of the user's cut remains."""
    before, behind = reach(found.units, found.part)
    kept = {a for a, _ in cuts}
    lost = {}
    for a, b in sorted(found.cuts - cuts):
        source, target = before[found.units.of[a]], behind[found.units.of[b]]
        bare = NOTHING_BEFORE if not source else NOTHING_AFTER if not target else "both its sides are in one part"
        lost.setdefault(a, dropped.get((a, b), bare))
    return [f"cut after '{facts[a].name}' dropped: {reason}" for a, reason in lost.items() if a not in kept]
