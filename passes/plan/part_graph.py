"""Which parts there are, and in which order they run."""

from dataclasses import dataclass

import networkx as nx

from ..graph.facts import Facts
from .aliasing import Pair, Sequences, memory, sequences, ties
from .availability import bits, sources, targets, union
from .levels import hanging_together
from .relocate import movable
from .units import Kind, Units, contract

ROUNDS = 4  # of raising levels for the sake of order; what is still in a knot then becomes one part


@dataclass
class Draft:
    """Parts as numbers, and the graph that they form. It is redrawn by `merge` until the parts are final.

    `graph` has an edge where one part must run before another, with
        data: values flow along it;
        gradient: a value does whose gradient comes back along it;
        cuts: the pairs of nodes of the user's cuts that lie on it;
    and on each part `first`, its first node, `trained`: a parameter in it learns, and `units`.
    """

    units: Units
    cuts: frozenset[Pair]  # after moving
    part: dict[int, int]  # anchored unit -> part
    graph: nx.DiGraph
    notes: list[str]

    def order(self) -> list[int]:
        """The parts in running order: what others wait for first, then by their first node."""
        return list(nx.lexicographical_topological_sort(self.graph, key=lambda part: self.graph.nodes[part]["first"]))

    def merge(self, part: int, into: int) -> None:
        """Make two parts one."""
        one, other = self.graph.nodes[into], self.graph.nodes[part]
        one["first"], one["trained"] = min(one["first"], other["first"]), one["trained"] or other["trained"]
        one["units"] += other["units"]
        for a, b, kept in [*self.graph.in_edges(part, data=True), *self.graph.out_edges(part, data=True)]:
            a, b = (into if end == part else end for end in (a, b))
            if a != b:
                _join(self.graph, a, b, **kept)
        self.graph.remove_node(part)
        self.part.update(dict.fromkeys(other["units"], into))


def draft(facts: Facts, cuts: frozenset[Pair]) -> Draft:
    """Parts that are free of cycles and draw random numbers in the order of the graph.

    A unit's level is the largest number of cut edges on a path to it; what hangs together by values on one level is one
    part. Where that makes parts take turns at random numbers or at a changing buffer, the later user is raised to the
    level of the earlier one; if they are on one level, the parts become one.

        x ─► drop ─► conv ─┼─► drop ─► conv ─► add        the third dropout, on the skip path, runs after the second:
                └────────────► drop ────────────┘         it goes to level 1

    Guarantees:
        The graph of the parts has no cycle.

    Raises:
        CutError: a cut lies inside an in-place write and nothing follows where it could go.
    """
    known = memory(facts)
    order, tied = sequences(facts, known), ties(facts, known)
    raised: list[Pair] = []
    for _ in range(ROUNDS):
        units = contract(facts, tied, order, raised)
        made, notes = movable(facts, known, units, cuts)
        part = hanging_together(units, made, raised)
        found = Draft(units, made, part, _graph(facts, units, part, made, order), notes)
        more = _knotted(found, order) - set(raised)
        if not more:
            break
        raised += sorted(more)
    _merge_knots(facts, found)
    return found


def _knotted(found: Draft, order: Sequences) -> set[Pair]:
    """The pairs that make parts wait for each other in a circle."""
    if nx.is_directed_acyclic_graph(found.graph):
        return set()
    knot = {part: number for number, knot in enumerate(nx.strongly_connected_components(found.graph)) for part in knot}
    ends = {pair: [found.part[found.units.of[p]] for p in pair] for pair in order.pairs}
    return {pair for pair, (p, q) in ends.items() if p != q and knot[p] == knot[q]}


def _merge_knots(facts: Facts, found: Draft) -> None:
    knots = [sorted(knot) for knot in nx.strongly_connected_components(found.graph) if len(knot) > 1]
    for first, *others in sorted(knots):
        begin = facts[found.graph.nodes[first]["first"]].name
        for other in others:
            name = facts[found.graph.nodes[other]["first"]].name
            taking_turns = "take turns at random numbers or at a changing buffer: they are one part"
            found.notes.append(f"what begins at '{begin}' and what begins at '{name}' {taking_turns}")
            found.merge(other, into=first)


def _graph(facts: Facts, units: Units, part: dict[int, int], cuts: frozenset[Pair], order: Sequences) -> nx.DiGraph:
    """The graph that a `Draft` describes."""
    graph, before, behind = nx.DiGraph(), sources(units, part), targets(units, part)
    for u, p in part.items():
        if p not in graph:
            graph.add_node(p, first=units.members[u][0], trained=False, units=[])
        graph.nodes[p]["units"].append(u)
        graph.nodes[p]["trained"] |= any(_trains(facts, units, x) for x in units.members[u])
    for u, p in part.items():
        for q in bits(union(units.inputs[u], before) & ~(1 << p)):
            _join(graph, q, p, data=True)
        learning = (x for x in units.members[u] if facts[x].gradient)
        for i in (i for x in learning for i in facts[x].inputs if facts[i].gradient):
            if (q := part.get(units.of[i], p)) != p:
                _join(graph, q, p, gradient=True)
    for a, b in cuts:
        for q in bits(before[units.of[a]]):
            for p in bits(behind[units.of[b]] & ~(1 << q)):
                _join(graph, q, p, cuts=frozenset({(a, b)}))
    for p, q in ((part[units.of[a]], part[units.of[b]]) for a, b in order.pairs):
        if p != q:
            _join(graph, p, q)
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


def _join(graph: nx.DiGraph, a: int, b: int, **new: bool | frozenset[Pair]) -> None:
    """An edge, with whatever it had and what is new."""
    old = graph.get_edge_data(a, b, {"data": False, "gradient": False, "cuts": frozenset()})
    graph.add_edge(a, b, **{key: was | new.get(key, was) for key, was in old.items()})
