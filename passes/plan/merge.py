"""Parts that nobody asked for, or that have nothing to learn, join a neighbour."""

import networkx as nx

from ..graph.facts import Facts
from .aliasing import Pair
from .part_graph import PartGraph
from .units import Kind

NOTHING_BEFORE = "nothing before it has a parameter to train"
NOTHING_AFTER = "nothing after it has a parameter to train"


def merge(facts: Facts, parts: PartGraph) -> None:
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
    asked = parts.cuts
    reasons: dict[Pair, str] = {}
    while (separating := _separating(parts)) and (join := _next(parts)) is not None:
        part, into, reason = join
        for ends in ((part, into), (into, part)):
            reasons |= dict.fromkeys(parts.graph.get_edge_data(*ends, {"cuts": ()})["cuts"], reason)
        parts.merge(part, into)
    parts.cuts = separating
    if not separating:
        first, *others = parts.order() or [0]
        for other in others:
            parts.merge(other, into=first)
    if lost := asked - parts.cuts:
        parts.notes += _notes(facts, parts, lost, reasons)


def _separating(parts: PartGraph) -> frozenset[Pair]:
    """The cuts that lie between two parts."""
    cuts: frozenset[Pair] = frozenset()
    for _, _, between in parts.graph.edges(data="cuts"):
        cuts |= between
    return cuts


def _next(parts: PartGraph) -> tuple[int, int, str] | None:
    """A part that has to go, the part that it joins, and why."""
    graph, order = parts.graph, parts.order()
    number = dict(zip(order, range(len(order)), strict=True))
    for part in order:
        for into in sorted(graph.successors(part), key=number.__getitem__):
            edge = graph.edges[part, into]
            if edge["gradient"] and not edge["cuts"] and _adjacent(graph, part, into):
                return part, into, ""  # nobody asked to cut there
    for at, part in enumerate(order):
        if graph.nodes[part]["trained"]:
            continue
        learning = any(gradient for *_, gradient in graph.in_edges(part, data="gradient"))
        read = any(data for *_, data in graph.out_edges(part, data="data"))
        reads = any(data for *_, data in graph.in_edges(part, data="data"))
        if not learning and (into := _neighbour(graph, order, part)) is not None:  # a prefix
            return part, into, NOTHING_BEFORE
        if not read and (into := _neighbour(graph.reverse(copy=False), order[::-1], part)) is not None:  # a suffix
            return part, into, NOTHING_AFTER
        if not read and not reads:
            return part, order[at - 1 if at else 1], NOTHING_AFTER  # neighbours in the running order can be joined
    return None


def _neighbour(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    """The first part of an order that `part` can join: one that it hands values to, else one that only waits for it."""
    readers = [q for q in order if graph.has_edge(part, q) and graph.edges[part, q]["data"]]
    waiting = [q for q in order if graph.has_edge(part, q) and q not in readers]
    return next((q for q in (*readers, *waiting) if readers and _adjacent(graph, part, q)), None)


def _adjacent(graph: nx.DiGraph, a: int, b: int) -> bool:
    """Nothing has to run between two parts, so that they can become one."""
    return not any(nx.has_path(graph, other, b) for other in graph.successors(a) if other != b)


def _notes(facts: Facts, parts: PartGraph, lost: frozenset[Pair], reasons: dict[Pair, str]) -> list[str]:
    """One line for each place at which nothing of the user's cut remains."""
    units = parts.units
    sources, targets = units.sources(parts.part), units.targets(parts.part)
    why: dict[int, str] = {}
    for a, b in sorted(lost):
        if units.kinds[units.of[a]] is Kind.FIXED:
            reason = "each part makes its own of what is made of weights and constants alone"
        elif not sources[units.of[a]] or not targets[units.of[b]]:
            reason = "no gradient crosses there"
        else:
            reason = reasons.get((a, b), "both its sides are one part")
        why.setdefault(a, reason)
    kept = {a for a, _ in parts.cuts}
    return [f"cut after '{facts[a].name}' dropped: {reason}" for a, reason in why.items() if a not in kept]
