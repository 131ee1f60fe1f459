"""Nodes that are tied become one unit; units have kinds, and form a graph without cycles.

h ─► relu_ ─► fc ─┼─► fc        units: {h, relu_} {fc} {fc}       a cut inside a unit moves to the edges that leave it
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from ..errors import CutError
from ..graph.facts import Facts
from .aliasing import Memory, Pair, Sequences, last_writer

Parts = frozenset[int]


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
    trained: tuple[bool, ...]  # a parameter that learns is used, directly or through fixed units

    def pairs(self, pairs: Iterable[Pair]) -> set[Pair]:
        """Pairs of nodes as pairs of units."""
        return {(self.of[a], self.of[b]) for a, b in pairs if self.of[a] != self.of[b]}

    def sources(self, part: Mapping[int, int]) -> list[Parts]:
        """For each unit the parts that its value comes from: its own, or those of what a free one reads."""
        parts = [Parts()] * len(self.kinds)
        for u, kind in enumerate(self.kinds):
            if kind is Kind.ANCHORED:
                parts[u] = frozenset((part[u],))
            elif kind is Kind.FREE:
                parts[u] = union(self.inputs[u], parts)
        return parts

    def targets(self, part: Mapping[int, int]) -> list[Parts]:
        """For each unit the parts that its value goes to: its own, or those of its users if it is not anchored."""
        parts = [Parts()] * len(self.kinds)
        for u in reversed(range(len(parts))):
            parts[u] = frozenset((part[u],)) if u in part else union(self.users[u], parts)
        return parts


def union(units: Iterable[int], parts: Sequence[Parts]) -> Parts:
    """The parts of several units."""
    return Parts().union(*map(parts.__getitem__, units))


def contract(facts: Facts, ties: Sequence[set[int]], order: Sequences, kept: Iterable[Pair] = ()) -> Units:
    """The units that result when tied nodes become one: the strongly connected components of nodes and ties.

        h ─► size ─► arange ─► scatter_(h)     h and scatter_ are tied; what lies between them must go with them

    Args:
        kept: pairs of nodes to keep in order, as if data flowed between them.

    Guarantees:
        Units depend on one another, and on `kept` pairs, without a cycle; they come in such an order, and nodes of a
        unit in graph order.
    """
    members = _components(facts, ties, kept) if ties else list(zip(range(len(facts))))
    of = [0] * len(facts)
    for unit, positions in enumerate(members):
        for p in positions:
            of[p] = unit
    inputs: list[tuple[int, ...]] = []
    users: list[list[int]] = [[] for _ in members]
    kinds: list[Kind] = []
    trained: list[bool] = []
    for unit, positions in enumerate(members):
        givers: set[int] = set()
        learns = False
        for p in positions:
            givers.update(map(of.__getitem__, facts[p].inputs))
            learns |= facts[p].trained
        givers.discard(unit)
        kinds_read = set()
        for giver in givers:
            users[giver].append(unit)
            kinds_read.add(kinds[giver])
            learns |= trained[giver] and kinds[giver] is Kind.FIXED
        inputs.append(tuple(sorted(givers)))
        kinds.append(_kind(facts, positions, kinds_read, order))
        trained.append(learns)
    return Units(tuple(members), tuple(of), tuple(inputs), tuple(map(tuple, users)), tuple(kinds), tuple(trained))


def _components(facts: Facts, ties: Sequence[set[int]], kept: Iterable[Pair]) -> list[tuple[int, ...]]:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(facts)))
    graph.add_edges_from((giver, p) for p, fact in enumerate(facts) for giver in fact.inputs)
    graph.add_edges_from(kept)
    for tie in ties:  # a ring of edges makes a tie one strongly connected component
        ring = sorted(tie)
        graph.add_edges_from(zip(ring, ring[1:] + ring[:1], strict=True))
    components = nx.condensation(graph)
    members = {c: tuple(sorted(positions)) for c, positions in components.nodes(data="members")}
    return [members[c] for c in nx.lexicographical_topological_sort(components, key=lambda c: members[c][0])]


def _kind(facts: Facts, positions: Sequence[int], kinds_read: set[Kind], order: Sequences) -> Kind:
    kinds, own, given = set(), frozenset[int](), frozenset[int]()
    for p in positions:
        kinds.add(facts[p].kind)
        own |= facts[p].holds
        for i in facts[p].inputs:
            if facts[i].kind == "input":
                given |= facts[i].holds
    if "input" in kinds:
        return Kind.INPUT
    if "constant" in kinds:
        return Kind.FIXED
    effect = learns = False
    for p in positions:
        fact = facts[p]
        # Pure: it leaves nothing but values, which follow from what it reads. A mask built in place is pure as a whole.
        if fact.random or p in order.members or not fact.writes <= own - given:
            return Kind.ANCHORED
        effect |= fact.effect
        learns |= fact.gradient or bool(fact.parameters)
    if kinds_read <= {Kind.FIXED} and not effect:
        return Kind.FIXED
    return Kind.ANCHORED if learns else Kind.FREE


def relocate(facts: Facts, memory: Memory, units: Units, cuts: frozenset[Pair]) -> tuple[frozenset[Pair], list[str]]:
    """The cuts, with those inside a unit moved to the edges that leave it; and a note on each that moved.

        asked    conv ─┼─► relu_ ───► fc
        made     conv ───► relu_ ─┼─► fc

    An item stays with its tuple, so a cut behind the tuple is one behind its items: that needs no note.

    Raises:
        CutError: nothing but the model's output follows. All such cuts are listed.
    """
    inside = {(a, b) for a, b in cuts if units.of[a] == units.of[b]}
    made = set(cuts - inside)
    notes: dict[int, str] = {}
    misfits: dict[int, str] = {}
    for a, b in sorted(inside):
        edges = _leaving(facts, units, a, b)
        made |= edges
        writer, why = last_writer(facts, memory, a), "which changes its value in place"
        if writer is None:
            writer, why = units.members[units.of[a]][-1], "which must run in one piece with it"
        past = facts[writer].name
        if not edges:
            way_out = f"and nothing follows that; cut before '{facts[a].name}'"
            misfits[a] = f"cut after '{facts[a].name}': it would have to move past '{past}', {why}, {way_out}"
        elif not facts[a].bundle:
            notes[a] = f"cut after '{facts[a].name}' moved past '{past}', {why}"
    if misfits:
        raise CutError(list(misfits.values()))
    return frozenset(made), list(notes.values())


def _leaving(facts: Facts, units: Units, a: int, b: int) -> set[Pair]:
    """The edges that leave the unit of `a` and `b` and carry a value computed behind the edge from `a` to `b`."""
    inside = units.members[units.of[a]]
    after = {b} | {p for p in inside if facts[p].holds & facts[a].holds}
    for p in inside:  # in graph order
        if p > b and after.intersection(facts[p].inputs):
            after.add(p)
    return {(p, user) for p in after for user in facts[p].users if units.of[user] != units.of[p]}
