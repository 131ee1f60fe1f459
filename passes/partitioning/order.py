"""Which parts there are, and in which order they run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import networkx as nx
from networkx.utils import UnionFind

from ..errors import CutError
from .facts import Facts
from .ties import Memory, Pair, Sequences, last_writer, memory, sequences, ties
from .units import Kind, Units, contract

ROUNDS = 4  # of raising levels for the sake of order; what is still in a knot then becomes one part


@dataclass(frozen=True)
class Draft:
    """Parts as numbers, and the graph that they form.

    `graph` has an edge where one part must run before another, with
        data: values flow along it;
        gradient: a value that carries a gradient does;
        cuts: the pairs of nodes of the user's cuts that lie on it;
    and on each part `first`, its first node, and `trained`: a parameter in it learns.
    """

    units: Units
    cuts: frozenset[Pair]  # those that could be made, after moving
    part: dict[int, int]  # anchored unit -> part
    graph: nx.DiGraph
    notes: list[str] = field(default_factory=list)

    def order(self) -> list[int]:
        """The parts in running order: what others wait for first, then by their first node."""
        return list(nx.lexicographical_topological_sort(self.graph, key=lambda part: self.graph.nodes[part]["first"]))


def draft(facts: Facts, cuts: frozenset[Pair]) -> Draft:
    """Parts that are free of cycles and draw random numbers in the order of the graph.

    A node's level is the largest number of cut edges on a path to it. What hangs together by values on one level is one
    part. Where that makes two parts take turns at random numbers or at a changing buffer, the later user is raised to
    the level of the earlier one:

        x ─► drop ─► conv ─┼─► drop ─► conv ─► add        the third dropout, on the skip path, runs after the second:
             └────────────► drop ─────────────┘           it goes to level 1

    Guarantees:
        The graph of the parts has no cycle.

    Raises:
        CutError: a cut lies inside an in-place write and nothing follows where it could go.
    """
    known = memory(facts)
    order = sequences(facts, known)
    tied = ties(facts, known)
    raised: list[Pair] = []
    for _ in range(ROUNDS):
        units = contract(facts, tied, order, raised)
        made, notes = _movable(facts, known, units, cuts)
        part = _parts(facts, units, made, raised)
        found = Draft(units, made, part, _graph(facts, units, part, made, order), notes)
        more = _knotted(found, order) - set(raised)
        if not more:
            break
        raised += sorted(more)
    return _merge_knots(facts, found)


def _movable(facts: Facts, known: Memory, units: Units, cuts: frozenset[Pair]) -> tuple[frozenset[Pair], list[str]]:
    """Cuts inside a unit move to the edges that leave it."""
    made, notes, misfits = set(cuts), {}, {}
    for a, b in sorted(cuts):
        if units.of[a] != units.of[b]:
            continue
        made.discard((a, b))
        leaving = _leaving(facts, units, a, b)
        made |= leaving
        told = notes if leaving else misfits
        told.setdefault(a, _why_moved(facts, known, units, a, leaving))
    if misfits:
        raise CutError(list(misfits.values()))
    return frozenset(made), list(notes.values())


def _leaving(facts: Facts, units: Units, a: int, b: int) -> set[Pair]:
    """The edges out of the unit of `a` and `b` by which what follows the edge from `a` to `b` leaves."""
    inside = units.members[units.of[a]]
    after = {b} | {p for p in inside if facts[p].holds & facts[a].holds}
    for p in inside:  # in graph order
        if after.intersection(facts[p].inputs) and p > b:
            after.add(p)
    return {(p, user) for p in after for user in facts[p].users if units.of[user] != units.of[p]}


def _why_moved(facts: Facts, known: Memory, units: Units, a: int, leaving: set[Pair]) -> str:
    name = facts[a].name
    writer = last_writer(facts, known, a)
    past = facts[writer if writer is not None else units.members[units.of[a]][-1]].name
    reason = "which changes its value in place" if writer is not None else "which must run in one piece with it"
    if leaving:
        return f"cut after '{name}' moved past '{past}', {reason}"
    return f"cut after '{name}': it would have to move past '{past}', {reason}, and nothing follows that; cut before '{name}'"


def _parts(facts: Facts, units: Units, cuts: frozenset[Pair], raised: Iterable[Pair]) -> dict[int, int]:
    """The part of each anchored unit, numbered by first node."""
    cut = units.pairs(cuts)
    after = units.pairs(raised)
    level = _levels(units, cut, after)
    hanging = _hanging(units, cut, level)
    anchored = sorted(units.anchored(), key=lambda u: units.members[u][0])
    number: dict[int, int] = {}
    return {u: number.setdefault(hanging[u], len(number)) for u in anchored}


def _levels(units: Units, cut: set[Pair], after: set[Pair]) -> list[int]:
    """The largest number of cut edges on a path to each unit.

    What is made of weights alone, but with a random draw or a buffer (a weight under spectral norm), is needed no sooner
    than its first user: it takes that one's level.
    """
    level = [0] * len(units)
    earlier: dict[int, list[int]] = {}
    for a, b in after:
        earlier.setdefault(b, []).append(a)
    for u in range(len(units)):
        level[u] = max((level[i] + ((i, u) in cut) for i in units.inputs[u]), default=0)
        level[u] = max([level[u], *(level[i] for i in earlier.get(u, ()))])
    later: dict[int, list[int]] = {}
    for a, b in after:
        later.setdefault(a, []).append(b)
    for u in reversed([u for u, rootless in enumerate(_rootless(units)) if rootless and units.users[u]]):
        users = min(level[v] - ((u, v) in cut) for v in units.users[u])
        level[u] = max(level[u], min([users, *(level[v] for v in later.get(u, ()))]))
    return level


def _rootless(units: Units) -> list[bool]:
    """Anchored units that no input of the model and no other part reaches."""
    found: list[bool] = []
    for u, kind in enumerate(units.kinds):
        fixed = all(units.kinds[i] is Kind.FIXED or found[i] for i in units.inputs[u])
        found.append(kind is Kind.ANCHORED and fixed)
    return found


def _hanging(units: Units, cut: set[Pair], level: Sequence[int]) -> UnionFind:
    """What hangs together by values on one level. Inputs, constants and what is made of them alone tie nothing."""
    together = UnionFind(range(len(units)))
    ties = [kind is Kind.ANCHORED for kind in units.kinds]
    for u, kind in enumerate(units.kinds):
        if kind not in (Kind.ANCHORED, Kind.FREE):
            continue
        for i in units.inputs[u]:
            if ties[i] and level[i] == level[u] and (i, u) not in cut:
                together.union(i, u)
                ties[u] = True
    return together


def _graph(facts: Facts, units: Units, part: dict[int, int], cuts: frozenset[Pair], order: Sequences) -> nx.DiGraph:
    before, behind = reach(units, part)
    graph = nx.DiGraph()
    for u, p in part.items():
        if p not in graph:
            graph.add_node(p, first=len(facts), trained=False, units=[])
        node = graph.nodes[p]
        node["units"].append(u)
        node["first"] = min(node["first"], units.members[u][0])
        node["trained"] |= any(_trains(facts, units, position) for position in units.members[u])
    for u, p in part.items():
        for q in bits(_sources(units, before, u) & ~(1 << p)):
            _join(graph, q, p, data=True)
        for i, user in ((i, position) for position in units.members[u] for i in facts[position].inputs):
            if facts[i].gradient and part.get(units.of[i], p) != p:
                _join(graph, part[units.of[i]], p, gradient=True)
    for a, b in sorted(cuts):
        for q in bits(before[units.of[a]]):
            for p in bits(behind[units.of[b]] & ~(1 << q)):
                _join(graph, q, p, cuts=frozenset({(a, b)}))
    for a, b in order.pairs:
        if part[units.of[a]] != part[units.of[b]]:
            _join(graph, part[units.of[a]], part[units.of[b]])
    return graph


def _trains(facts: Facts, units: Units, position: int) -> bool:
    """A parameter that learns is used here, directly or through what is made of parameters alone."""
    waiting, seen = [position], {position}
    while waiting:
        fact = facts[waiting.pop()]
        if fact.trained:
            return True
        new = {i for i in fact.inputs if units.kinds[units.of[i]] is Kind.FIXED} - seen
        seen |= new
        waiting += new
    return False


def _sources(units: Units, before: Sequence[int], u: int) -> int:
    found = 0
    for i in units.inputs[u]:
        found |= before[i]
    return found


def _join(graph: nx.DiGraph, a: int, b: int, data: bool = False, gradient: bool = False, cuts: frozenset[Pair] = frozenset()) -> None:
    old = graph.get_edge_data(a, b, {"data": False, "gradient": False, "cuts": frozenset()})
    graph.add_edge(a, b, data=old["data"] or data, gradient=old["gradient"] or gradient, cuts=old["cuts"] | cuts)


def reach(units: Units, part: dict[int, int]) -> tuple[list[int], list[int]]:
    """For each unit the parts that its value comes from, and those that it goes to, as sets of bits.

    An anchored unit comes from and goes to its own part; a free one counts what lies before and behind it.
    """
    before, behind = [0] * len(units), [0] * len(units)
    for u, kind in enumerate(units.kinds):
        if kind is Kind.ANCHORED:
            before[u] = behind[u] = 1 << part[u]
        elif kind is Kind.FREE:
            before[u] = _sources(units, before, u)
    for u in reversed(range(len(units))):
        if units.kinds[u] is not Kind.ANCHORED:
            for v in units.users[u]:
                behind[u] |= behind[v]
    return before, behind


def bits(found: int) -> Iterable[int]:
    """The numbers in a set of bits, in order."""
    while found:
        lowest = found & -found
        yield lowest.bit_length() - 1
        found ^= lowest


def _knotted(found: Draft, order: Sequences) -> set[Pair]:
    """The pairs that make parts wait for each other in a circle."""
    if nx.is_directed_acyclic_graph(found.graph):
        return set()
    knot = {part: number for number, knot in enumerate(nx.strongly_connected_components(found.graph)) for part in knot}
    of = [(a, b, found.part[found.units.of[a]], found.part[found.units.of[b]]) for a, b in order.pairs]
    return {(a, b) for a, b, p, q in of if p != q and knot[p] == knot[q]}


def _merge_knots(facts: Facts, found: Draft) -> Draft:
    knots = [sorted(knot) for knot in nx.strongly_connected_components(found.graph) if len(knot) > 1]
    for first, *others in sorted(knots):
        for other in others:
            names = [facts[found.graph.nodes[part]["first"]].name for part in (first, other)]
            found.notes.append(
                f"what begins at '{names[0]}' and at '{names[1]}' takes turns at random numbers or a buffer: one part"
            )
            merge(found, other, first)
    return found


def merge(found: Draft, part: int, into: int) -> None:
    """Make two parts one."""
    graph, (one, other) = found.graph, (found.graph.nodes[into], found.graph.nodes[part])
    one["first"], one["trained"] = min(one["first"], other["first"]), one["trained"] or other["trained"]
    for a, b, kept in [*graph.in_edges(part, data=True), *graph.out_edges(part, data=True)]:
        ends = [into if end == part else end for end in (a, b)]
        if ends[0] != ends[1]:
            _join(graph, *ends, **kept)
    graph.remove_node(part)
    one["units"] += other["units"]
    found.part.update(dict.fromkeys(other["units"], into))
