"""Nodes that are tied become one unit; units have kinds, and form a graph without cycles."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from ..graph.facts import Facts
from .aliasing import Pair, Sequences


class Kind(enum.Enum):
    """What a unit is to the partition."""

    INPUT = "an input of the model: every part may read it"
    FIXED = "a parameter or constant, or made of such alone: every part makes its own, so that no weight is sent"
    FREE = "pure and without gradient: it stands where the least traffic results"
    ANCHORED = "it carries a gradient, owns parameters, draws random numbers or changes something: it decides the parts"


@dataclass(frozen=True)
class Units:
    """Groups of nodes that run in one part, in a running order."""

    members: tuple[tuple[int, ...], ...]
    of: tuple[int, ...]  # position -> unit
    inputs: tuple[tuple[int, ...], ...]
    users: tuple[tuple[int, ...], ...]
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        return len(self.members)

    def anchored(self) -> Iterable[int]:
        return (u for u, kind in enumerate(self.kinds) if kind is Kind.ANCHORED)

    def pairs(self, pairs: Iterable[Pair]) -> set[Pair]:
        """Pairs of nodes as pairs of units."""
        return {(self.of[a], self.of[b]) for a, b in pairs if self.of[a] != self.of[b]}


def contract(facts: Facts, ties: Sequence[set[int]], order: Sequences, kept: Iterable[Pair] = ()) -> Units:
    """The units that result when tied nodes become one.

        h ─► size ─► arange ─► scatter_(h)     h and scatter_ are tied; what lies between them must go with them

    Args:
        kept: pairs of nodes to keep in order, as if data flowed between them.

    Guarantees:
        Units depend on one another, and on `kept` pairs, without a cycle; they come in such an order, and nodes of a
        unit in graph order.
    """
    members = _knots(facts, ties, kept) if ties else [(p,) for p in range(len(facts))]
    of = [0] * len(facts)
    for unit, positions in enumerate(members):
        for position in positions:
            of[position] = unit
    inputs = [tuple(sorted({of[i] for p in unit for i in facts[p].inputs} - {u})) for u, unit in enumerate(members)]
    users: list[list[int]] = [[] for _ in members]
    for unit, givers in enumerate(inputs):
        for giver in givers:
            users[giver].append(unit)
    kinds: list[Kind] = []
    for positions, givers in zip(members, inputs, strict=True):
        kinds.append(_kind(facts, positions, [kinds[giver] for giver in givers], order))
    return Units(tuple(members), tuple(of), tuple(inputs), tuple(map(tuple, users)), tuple(kinds))


def _knots(facts: Facts, ties: Sequence[set[int]], kept: Iterable[Pair]) -> list[tuple[int, ...]]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(facts)))
    graph.add_edges_from((giver, p) for p, fact in enumerate(facts) for giver in fact.inputs)
    graph.add_edges_from(kept)
    for tie in ties:  # a ring of edges makes a tie one strongly connected component
        ring = sorted(tie)
        graph.add_edges_from(zip(ring, ring[1:] + ring[:1], strict=True))
    knots = nx.condensation(graph)
    members = {knot: tuple(sorted(found)) for knot, found in knots.nodes(data="members")}
    return [members[knot] for knot in nx.lexicographical_topological_sort(knots, key=lambda knot: members[knot][0])]


def _kind(facts: Facts, positions: Sequence[int], givers: Sequence[Kind], order: Sequences) -> Kind:
    kinds = {facts[p].kind for p in positions}
    if "input" in kinds:
        return Kind.INPUT
    if "constant" in kinds:
        return Kind.FIXED
    if not _is_pure(facts, positions, order):
        return Kind.ANCHORED
    if all(kind is Kind.FIXED for kind in givers) and not any(facts[p].effect for p in positions):
        return Kind.FIXED
    trains = any(facts[p].gradient or facts[p].parameters for p in positions)
    return Kind.ANCHORED if trains else Kind.FREE


def _is_pure(facts: Facts, positions: Sequence[int], order: Sequences) -> bool:
    """Its values are all that it leaves behind, and they follow from what it reads.

    A mask that is built in place is pure as a whole.
    """
    own = frozenset().union(*(facts[p].holds for p in positions))
    read = frozenset().union(*(facts[i].holds for p in positions for i in facts[p].inputs if facts[i].kind == "input"))
    return all(p not in order.members and not facts[p].random and facts[p].writes <= own - read for p in positions)
