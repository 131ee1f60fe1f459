"""Which parts there are, and in which order they run: tied nodes become units, units on one level become parts.

h ─► relu_ ─► fc ─┼─► fc        units: {h, relu_} {fc} {fc}       a cut inside a unit moves to the edges that leave it
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from networkx.utils import UnionFind

from ..errors import CutError
from ..graph.facts import Facts
from .aliasing import Memory, Pair, Sequences, last_writer, sequences, ties, written_memory

Parts = frozenset[int]
ROUNDS = 4  # of raising levels for the sake of order; the parts that still wait for each other then become one
NO_EDGE = {"data": False, "gradient": False, "cuts": frozenset[Pair]()}


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
