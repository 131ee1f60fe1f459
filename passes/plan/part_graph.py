"""Which parts there are, and in which order they run."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
from networkx.utils import UnionFind

from ..graph.facts import Facts
from .aliasing import Pair, Sequences, sequences, ties, written_memory
from .units import Kind, Units, contract, relocate, union

ROUNDS = 4  # of raising levels for the sake of order; the parts that still wait for each other then become one
NO_EDGE = {"data": False, "gradient": False, "cuts": frozenset[Pair]()}


@dataclass
class PartGraph:
    """Parts as numbers, and the graph that they form. `merge` joins parts until they are final.

    `graph` has an edge where one part must run before another, with
        data: values flow along it;
        gradient: a value flows along it whose gradient comes back;
        cuts: the pairs of nodes of the user's cuts that lie on it;
    and on each part `first`, its first node, `trained`: a parameter in it learns, and `units`.
    """

    units: Units
    cuts: frozenset[Pair]  # after moving
    part: dict[int, int]  # anchored unit -> part
    graph: nx.DiGraph
    notes: list[str]

    def order(self) -> list[int]:
        """The parts in running order; of those that may run next, the one with the earliest node first."""
        first = dict(self.graph.nodes(data="first"))
        return list(nx.lexicographical_topological_sort(self.graph, key=first.__getitem__))

    def merge(self, part: int, into: int) -> None:
        """Make two parts one."""
        one, other = self.graph.nodes[into], self.graph.nodes[part]
        one["first"], one["trained"] = min(one["first"], other["first"]), one["trained"] or other["trained"]
        one["units"] += other["units"]
        for a, b, edge in [*self.graph.in_edges(part, data=True), *self.graph.out_edges(part, data=True)]:
            a, b = (into if end == part else end for end in (a, b))
            if a != b:
                _join(self.graph, a, b, **edge)
        self.graph.remove_node(part)
        self.part.update(dict.fromkeys(other["units"], into))


def part_graph(facts: Facts, cuts: frozenset[Pair]) -> PartGraph:
    """Parts that are free of cycles and draw random numbers in the order of the graph.

    A unit's level is the largest number of cut edges on a path to it. Units on one level that are connected by values
    are one part. Where parts would have to take turns at random numbers or at a changing buffer, the later user is
    raised to the level of the earlier one; if they are on one level, the parts become one.

        x ─► drop ─► conv ─┼─► drop ─► conv ─► add        the third dropout, on the skip path, runs after the second:
                └────────────► drop ────────────┘         it goes to level 1

    Guarantees:
        The graph of the parts has no cycle.

    Raises:
        CutError: a cut lies inside an in-place write and nothing follows where it could go.
    """
    memory = written_memory(facts)
    order, tied = sequences(facts, memory), ties(facts, memory)
    raised: list[Pair] = []
    for _ in range(ROUNDS):
        units = contract(facts, tied, order, raised)
        moved, notes = relocate(facts, memory, units, cuts)
        part = _connected(units, moved, raised)
        parts = PartGraph(units, moved, part, _graph(facts, units, part, moved, order), notes)
        if nx.is_directed_acyclic_graph(parts.graph):
            return parts
        more = _turns(parts, order) - set(raised)
        if not more:
            break
        raised += sorted(more)
    _merge_cycles(facts, parts)
    return parts


def _connected(units: Units, cuts: Iterable[Pair], raised: Iterable[Pair]) -> dict[int, int]:
    """The part of each anchored unit: connected components of one level, numbered by their first nodes.

    Inputs, parameters, constants and what is made of them without a gradient connect nothing.

    Args:
        raised: pairs of nodes of which the second must not be on a lower level than the first.
    """
    cut, earlier = units.pairs(cuts), defaultdict(list)
    for a, b in units.pairs(raised):
        earlier[b].append(a)
    level = [0] * len(units.kinds)
    connected = UnionFind(range(len(level)))
    hangs_on: list[set[int]] = [set() for _ in level]  # the anchored units of its level that a unit depends on
    anchored = []
    for u, kind in enumerate(units.kinds):
        for i in units.inputs[u]:
            level[u] = max(level[u], level[i] + ((i, u) in cut))
        for i in earlier[u]:
            level[u] = max(level[u], level[i])
        if kind is Kind.ANCHORED:
            hangs_on[u].add(u)
            anchored.append((units.members[u][0], u))
        for i in units.inputs[u]:
            if level[i] != level[u]:
                continue
            if kind is Kind.ANCHORED:
                connected.union(u, *hangs_on[i])
            elif kind is Kind.FREE:  # a size taken here connects its users to it, but a comparison connects no towers
                hangs_on[u] |= hangs_on[i]
    number: dict[int, int] = {}
    return {u: number.setdefault(connected[u], len(number)) for _, u in sorted(anchored)}


def _turns(parts: PartGraph, order: Sequences) -> set[Pair]:
    """The pairs of nodes whose order makes parts wait for each other in a circle."""
    components = enumerate(nx.strongly_connected_components(parts.graph))
    component = {part: number for number, members in components for part in members}
    ends = {pair: [parts.part[parts.units.of[p]] for p in pair] for pair in order.pairs}
    return {pair for pair, (p, q) in ends.items() if p != q and component[p] == component[q]}


def _merge_cycles(facts: Facts, parts: PartGraph) -> None:
    cycles = [sorted(cycle) for cycle in nx.strongly_connected_components(parts.graph) if len(cycle) > 1]
    for first, *others in sorted(cycles):
        begin = facts[parts.graph.nodes[first]["first"]].name
        for other in others:
            name = facts[parts.graph.nodes[other]["first"]].name
            taking_turns = "take turns at random numbers or at a changing buffer: they are one part"
            parts.notes.append(f"what begins at '{begin}' and what begins at '{name}' {taking_turns}")
            parts.merge(other, into=first)


def _graph(facts: Facts, units: Units, part: dict[int, int], cuts: frozenset[Pair], order: Sequences) -> nx.DiGraph:
    """The graph that a `PartGraph` describes."""
    graph, sources, targets = nx.DiGraph(), units.sources(part), units.targets(part)
    for u, p in part.items():
        if p not in graph:
            graph.add_node(p, first=units.members[u][0], trained=False, units=[])
        graph.nodes[p]["units"].append(u)
        graph.nodes[p]["trained"] |= units.trained[u]
    for u, p in part.items():
        for q in union(units.inputs[u], sources) - {p}:
            _join(graph, q, p, data=True)
        learning = [x for x in units.members[u] if facts[x].gradient]
        for i in (i for x in learning for i in facts[x].inputs if facts[i].gradient):
            if (q := part.get(units.of[i], p)) != p:
                _join(graph, q, p, gradient=True)
    for a, b in cuts:
        for q in sources[units.of[a]]:
            for p in targets[units.of[b]] - {q}:
                _join(graph, q, p, cuts=frozenset({(a, b)}))
    for a, b in order.pairs:
        if part[units.of[a]] != part[units.of[b]]:
            _join(graph, part[units.of[a]], part[units.of[b]])
    return graph


def _join(
    graph: nx.DiGraph, a: int, b: int, data: bool = False, gradient: bool = False, cuts: frozenset[Pair] = frozenset()
) -> None:
    """An edge, with what it had and what is new."""
    old = graph.get_edge_data(a, b, NO_EDGE)
    graph.add_edge(a, b, data=old["data"] or data, gradient=old["gradient"] or gradient, cuts=old["cuts"] | cuts)
