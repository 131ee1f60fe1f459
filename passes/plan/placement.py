"""Where free nodes stand: each part makes or receives what it needs, so that the least traffic results."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import networkx as nx

from ..graph.facts import PYTHON_VALUE, Facts
from .part_graph import Kind, Parts, Units, union

_THERE, _NEEDED = -1, -2  # the two ends of a flow


@dataclass(frozen=True)
class Placement:
    """The nodes of each part, in graph order, and the part from which others get a value."""

    members: tuple[tuple[int, ...], ...]
    maker: dict[int, int]


def place(facts: Facts, units: Units, part: Mapping[int, int], count: int) -> Placement:
    """Put every node into the parts that need it. Parts are numbered in running order.

        part 0   h ─► h > 0 ─► any ─┐           h is large, its flag is small:
        part 1                      └─► where   the flag is made in part 0 and sent

    Each part, from the last to the first, gets what it needs by a minimum cut between what there is and what it needs:
    a value costs its bytes to receive, and nothing if the part has it anyway. Inputs of the model can be had anywhere,
    for their bytes once per part that reads them; parameters and constants cost nothing. What a part receives is made
    in the first part that can, its home.

    Guarantees:
        A part receives only from parts on which it depends already, so that parallel parts stay independent: they make
        the same mask twice rather than wait for each other.
        What is made of parameters and constants alone is made in each part that needs it and never sent.
        A guard stands in the first part in which what it looks at can be known.

    Source:
        Assigning work to two processors by a minimum cut: Stone 1977, "Multiprocessor scheduling with the aid of
        network flow algorithms". Here there is one cut for each part, as a value may be made twice.
    """
    there = Availability(facts, units, part, count)
    made: list[set[int]] = [set() for _ in range(count)]
    wanted: list[set[int]] = [set() for _ in range(count)]
    for u, p in part.items():
        made[p].add(u)
        wanted[p].update(there.free_inputs[u])
    for u in there.ends:
        wanted[there.home[u]].add(u)
    for p in reversed(range(count)):
        if wanted[p]:
            here, received = _choose(there, p, wanted[p])
            made[p] |= here
            for u in received:
                wanted[there.home[u]].add(u)
    _add_fixed(there, made)
    members: list[tuple[int, ...]] = []
    maker: dict[int, int] = {}
    for p, here in enumerate(made):
        positions: list[int] = []
        for u in here:
            positions += units.members[u]
            if there.home.get(u, p) == p:
                for x in units.members[u]:
                    maker.setdefault(x, p)
        members.append(tuple(sorted(positions)))
    return Placement(tuple(members), maker)


class Availability:
    """What the parts can have of each unit, before any choice is made.

    Attributes:
        ends: free units that are needed whoever uses them: guards and other effects, and outputs of the model.
        above: for each part those on which it depends, itself included.
        at_hand: for each unit the parts that have it without receiving anything for it.
        home: the part in which a free unit is made for others: the first that can without waiting for more.
    """

    def __init__(self, facts: Facts, units: Units, part: Mapping[int, int], count: int):
        self.facts, self.units, self.part, self.count = facts, units, part, count
        self.sources = units.sources(part)
        self.free_inputs: list[list[int]] = []
        self.ends: dict[int, None] = {}
        for u, inputs in enumerate(units.inputs):
            self.free_inputs.append([i for i in inputs if units.kinds[i] is Kind.FREE])
            for x in units.members[u] if units.kinds[u] is Kind.FREE else ():
                if facts[x].effect or facts[x].handed:
                    self.ends[u] = None
        self.above = self._above()
        self.at_hand = self._at_hand()
        self.home = self._homes()

    def receivable(self, u: int, p: int) -> bool:
        """Part `p` may ask another for this free unit."""
        return self.home[u] != p and self.home[u] in self.above[p]

    def cost(self, u: int) -> int:
        """Bytes to receive the values of a unit."""
        of = self.units.of
        leaving = (self.facts[x] for x in self.units.members[u] if any(of[user] != u for user in self.facts[x].users))
        return max(1, sum(fact.bytes for fact in leaving))

    def _above(self) -> list[Parts]:
        direct = [frozenset((p,)) for p in range(self.count)]
        for u, p in self.part.items():
            direct[p] |= union(self.units.inputs[u], self.sources)
        above = _closed(direct)
        for u in self.ends:  # made of parts that no part joins: the last of them has to wait for the others
            source = self.sources[u]
            if source and not any(source <= above[p] for p in range(max(source), self.count)):
                direct[max(source)] |= source
        return _closed(direct)

    def _at_hand(self) -> list[Parts]:
        parts = [frozenset(range(self.count))] * len(self.sources)
        for u, kind in enumerate(self.units.kinds):
            if kind is Kind.FREE:
                for i in self.units.inputs[u]:
                    parts[u] &= parts[i]
            elif kind is not Kind.FIXED:
                parts[u] = self.sources[u].union([self.part[user] for user in self.units.users[u] if user in self.part])
        return parts

    def _homes(self) -> dict[int, int]:
        wanted = [Parts()] * len(self.sources)  # for each unit the parts that need it
        homes: dict[int, int] = {}
        for u in reversed(range(len(wanted))):
            if u in self.part:
                wanted[u] = frozenset((self.part[u],))
                continue
            wanted[u] = union(self.units.users[u], wanted)
            if self.units.kinds[u] is not Kind.FREE:
                continue
            if source := self.sources[u]:
                homes[u] = next(p for p in range(max(source), self.count) if source <= self.above[p])
            else:  # made of inputs and weights alone
                homes[u] = 0 if u in self.ends else min(wanted[u] | self.at_hand[u], default=0)
            if u in self.ends:
                wanted[u] |= {homes[u]}
        return homes


def _closed(direct: list[Parts]) -> list[Parts]:
    """The transitive closure of what each part depends on."""
    above: list[Parts] = []
    for p, parts in enumerate(direct):
        above.append(parts | union(parts - {p}, above))
    return above


def _choose(there: Availability, p: int, wanted: Iterable[int]) -> tuple[set[int], set[int]]:
    """What a part makes and what it receives, of the free units that it wants."""
    made: set[int] = set()
    undecided: set[int] = set()
    waiting = sorted(wanted)
    while waiting:  # 1. no choice: it is at hand, or no other part can make it
        u = waiting.pop()
        if u in made or u in undecided:
            continue
        if p in there.at_hand[u] or not there.receivable(u, p):
            made.add(u)
            waiting += there.free_inputs[u]
        else:
            undecided.add(u)
    sizes = {u for u in undecided if there.cost(u) <= PYTHON_VALUE}  # 2. too small to be worth a search: received
    if undecided == sizes:
        return made, sizes
    received = _cheapest(there, p, sorted(undecided - sizes), made)  # 3. received or made of less
    behind: set[int] = set()
    waiting = list(undecided - sizes)
    while waiting:
        u = waiting.pop()
        if u not in behind and u not in received:
            behind.add(u)
            waiting += there.free_inputs[u]
    return made | behind, sizes | received


def _cheapest(there: Availability, p: int, wanted: list[int], made: Set[int]) -> set[int]:
    """The free units to receive: those in a minimum cut of all from which the wanted ones can be made.

        there ─► h ══bytes══► h ─► h > 0 ══bytes══► h > 0 ─► any ══bytes══► any ─► needed

    Each unit is an edge with its cost; a cut edge is received, and what lies behind it is made.
    """
    free = [kind is Kind.FREE for kind in there.units.kinds]
    known = made | {i for u in made for i in there.units.inputs[u]}  # here by now, whatever it cost
    flow = nx.DiGraph([(2 * u + 1, _NEEDED) for u in wanted])
    waiting, seen = list(wanted), set(wanted)
    while waiting:
        u = waiting.pop()
        receivable = not free[u] or there.receivable(u, p)
        flow.add_edge(2 * u, 2 * u + 1, **({"capacity": there.cost(u)} if receivable else {}))
        if not free[u] or (receivable and there.cost(u) <= PYTHON_VALUE):
            flow.add_edge(_THERE, 2 * u)
            continue
        new = [i for i in there.units.inputs[u] if p not in there.at_hand[i] and i not in known]
        flow.add_edges_from((2 * i + 1, 2 * u) for i in new)
        waiting += set(new) - seen
        seen.update(new)
    if _THERE not in flow:
        return set()
    _, (source_side, sink_side) = nx.minimum_cut(flow, _THERE, _NEEDED)
    return {u for u in seen if free[u] and 2 * u in source_side and 2 * u + 1 in sink_side}


def _add_fixed(there: Availability, made: list[set[int]]) -> None:
    """Give each part its own copy of the parameters and constants that it uses, and of what is made of them alone."""
    units, unused = there.units, set[int]()
    for x, fact in enumerate(there.facts):
        if fact.handed and units.kinds[units.of[x]] is Kind.FIXED:
            unused.add(units.of[x])
    for here in made:
        waiting = []
        for u in here:
            waiting += [i for i in units.inputs[u] if units.kinds[i] is Kind.FIXED]
        _add(units, here, waiting)
        unused -= here
    _add(units, made[0], list(unused))  # outputs of the model that no part needs


def _add(units: Units, here: set[int], waiting: list[int]) -> None:
    """Add units with all that they are made of."""
    while waiting:
        u = waiting.pop()
        if u not in here:
            here.add(u)
            waiting += units.inputs[u]
