"""Where free nodes stand: each part makes or receives what it needs, so that the least traffic results."""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from .facts import PYTHON_VALUE, Facts
from .order import bits
from .units import Kind, Units

_THERE, _NEEDED = -1, -2  # the two ends of a flow


@dataclass(frozen=True)
class Placed:
    """The nodes of each part, in graph order, and the part from which others get a value."""

    members: tuple[tuple[int, ...], ...]
    maker: dict[int, int]


def place(facts: Facts, units: Units, part: dict[int, int], count: int) -> Placed:
    """Put every node into the parts that need it. Parts are numbered in running order.

        part 0   h ─► h > 0 ─► any ─┐           h is large, its flag is small:
        part 1                      └─► where   the flag is made in part 0 and sent

    Each part, from the last to the first, gets what it needs by a minimum cut between what there is and what it needs:
    a value costs its bytes to receive, twice that if it carries a gradient (which must come back), and nothing if the
    part has it anyway. Inputs of the model are at hand everywhere and cost their bytes once per part that reads them;
    parameters and constants cost nothing. What a part receives is made in the first part that can, its home.

    Guarantees:
        A part receives only from parts on which it depends already, so that parallel parts stay independent: they make
        the same mask twice rather than wait for each other.
        What is made of parameters and constants alone is made in each part that needs it and never sent.
        A guard stands in the first part in which what it looks at can be known.
    """
    view = _View(facts, units, part, count)
    made: list[set[int]] = [set() for _ in range(count)]
    wanted: list[set[int]] = [set() for _ in range(count)]
    for u, p in part.items():
        made[p].add(u)
        wanted[p].update(view.free_inputs(u))
    for u in view.ends:
        wanted[view.home[u]].add(u)
    for p in reversed(range(count)):
        here, received = _choose(view, p, wanted[p])
        made[p] |= here
        for u in received:
            wanted[view.home[u]].add(u)
    _fetch_fixed(view, made)
    members = tuple(tuple(sorted(x for u in units_here for x in units.members[u])) for units_here in made)
    return Placed(members, _makers(view, made))


class _View:
    """What is known before any choice. Sets of parts are bits of a number."""

    def __init__(self, facts: Facts, units: Units, part: dict[int, int], count: int):
        self.facts, self.units, self.part, self.count = facts, units, part, count
        self.free = [kind is Kind.FREE for kind in units.kinds]
        handed = set(facts.handed)
        self.ends = [u for u, m in enumerate(units.members) if self.free[u] and any(facts[x].effect or x in handed for x in m)]
        self.sources = self._sources()
        self.above = self._above()
        self.at_hand = self._at_hand()
        self.home = self._homes()

    def free_inputs(self, u: int) -> Iterable[int]:
        return (i for i in self.units.inputs[u] if self.free[i])

    def receivable(self, u: int, p: int) -> bool:
        """Part `p` may ask another for this free value."""
        return self.home[u] != p and bool(self.above[p] >> self.home[u] & 1)

    def cost(self, u: int) -> int:
        """Bytes to receive the values of a unit."""
        leaving = [self.facts[x] for x in self.units.members[u] if any(self.units.of[v] != u for v in self.facts[x].users)]
        return max(1, sum(fact.bytes * (1 + fact.gradient) for fact in leaving))

    def _sources(self) -> list[int]:
        """The parts from which a value comes."""
        found = [0] * len(self.units)
        for u in range(len(self.units)):
            if u in self.part:
                found[u] = 1 << self.part[u]
            elif self.free[u]:
                found[u] = self._all_sources(u, found)
        return found

    def _all_sources(self, u: int, found: list[int]) -> int:
        union = 0
        for i in self.units.inputs[u]:
            union |= found[i]
        return union

    def _above(self) -> list[int]:
        """For each part those on which it depends, itself included."""
        direct = [1 << p for p in range(self.count)]
        for u, p in self.part.items():
            direct[p] |= self._all_sources(u, self.sources)
        above = _closed(direct)
        for u in self.ends:  # a guard or an output over parts that nobody joins: the last of them has to wait
            source = self.sources[u]
            if source and not any(source & ~above[p] == 0 for p in range(source.bit_length() - 1, self.count)):
                direct[source.bit_length() - 1] |= source
        return _closed(direct)

    def _at_hand(self) -> list[int]:
        """For each unit the parts that have it without receiving anything for it."""
        everywhere = (1 << self.count) - 1
        found = [everywhere] * len(self.units)
        for u, kind in enumerate(self.units.kinds):
            if self.free[u]:
                for i in self.units.inputs[u]:
                    found[u] &= found[i]
            elif kind is not Kind.FIXED:
                found[u] = self.sources[u]
                for user in self.units.users[u]:
                    found[u] |= 1 << self.part[user] if user in self.part else 0
        return found

    def _homes(self) -> dict[int, int]:
        """The part in which a free value is made for others: the first that can without waiting for more."""
        ends = set(self.ends)
        behind = [0] * len(self.units)  # the parts that need it
        homes: dict[int, int] = {}
        for u in reversed(range(len(self.units))):
            if u in self.part:
                behind[u] = 1 << self.part[u]
                continue
            for user in self.units.users[u]:
                behind[u] |= behind[user]
            if self.free[u]:
                homes[u] = self._home(u, behind[u], u in ends)
                behind[u] |= (u in ends) << homes[u]
        return homes

    def _home(self, u: int, behind: int, end: bool) -> int:
        if source := self.sources[u]:
            top = source.bit_length() - 1
            return next(p for p in range(top, self.count) if source & ~self.above[p] == 0)
        return 0 if end else next(iter(bits(behind | self.at_hand[u])), 0)


def _closed(direct: list[int]) -> list[int]:
    above: list[int] = []
    for p, found in enumerate(direct):
        for q in bits(found & ~(1 << p)):
            found |= above[q]
        above.append(found)
    return above


def _choose(view: _View, p: int, wanted: set[int]) -> tuple[set[int], set[int]]:
    """Of what a part wants: what it makes and what it receives."""
    made, open_ends, waiting = set(), set(), sorted(wanted)
    while waiting:  # without a choice: at hand, or at home here
        u = waiting.pop()
        if u in made or u in open_ends:
            continue
        if view.at_hand[u] >> p & 1 or not view.receivable(u, p):
            made.add(u)
            waiting += view.free_inputs(u)
        else:
            open_ends.add(u)
    numbers = {u for u in open_ends if view.cost(u) <= PYTHON_VALUE}  # a size is worth no search
    if open_ends == numbers:
        return made, numbers
    more, received = _cheapest(view, p, sorted(open_ends - numbers), made)
    return made | more, numbers | received


def _cheapest(view: _View, p: int, wanted: list[int], made: set[int]) -> tuple[set[int], set[int]]:
    """What to make and what to receive: a minimum cut of the graph behind what is wanted.

        there ─► leaf ══bytes══► leaf ─► make ══bytes══► make ─► needed
    """
    given = {i for u in made for i in view.units.inputs[u]} | made  # at hand now, whatever it cost
    flow = nx.DiGraph()
    flow.add_edges_from((2 * u + 1, _NEEDED) for u in wanted)
    waiting, seen = list(wanted), set(wanted)
    while waiting:
        u = waiting.pop()
        leaf = not view.free[u]
        if leaf or view.receivable(u, p):
            flow.add_edge(2 * u, 2 * u + 1, capacity=view.cost(u))
        else:
            flow.add_edge(2 * u, 2 * u + 1)
        if leaf or (view.cost(u) <= PYTHON_VALUE and view.receivable(u, p)):
            flow.add_edge(_THERE, 2 * u)
            continue
        new = [i for i in view.units.inputs[u] if not view.at_hand[i] >> p & 1 and i not in given]
        flow.add_edges_from((2 * i + 1, 2 * u) for i in new)
        waiting += [i for i in new if i not in seen]
        seen.update(new)
    if _THERE not in flow:
        return _behind(view, p, wanted), set()
    _, (there, needed) = nx.minimum_cut(flow, _THERE, _NEEDED)
    received = {u for u in seen if view.free[u] and 2 * u in there and 2 * u + 1 in needed}
    return _behind(view, p, [u for u in wanted if u not in received], received), received


def _behind(view: _View, p: int, wanted: list[int], received: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
    """All that has to be made for what is wanted, given what is received."""
    made, waiting = set(), list(wanted)
    while waiting:
        u = waiting.pop()
        if u not in made and u not in received:
            made.add(u)
            waiting += view.free_inputs(u)
    return made


def _fetch_fixed(view: _View, made: list[set[int]]) -> None:
    """Each part gets its own copy of the parameters and constants that it uses, and of what is made of them alone."""
    units = view.units
    for here in made:
        waiting = [i for u in here for i in units.inputs[u] if units.kinds[i] is Kind.FIXED]
        _with_inputs(view, here, waiting)
    for position in view.facts.handed:
        u = units.of[position]
        if units.kinds[u] is Kind.FIXED and not any(u in here for here in made):
            _with_inputs(view, made[0], [u])


def _with_inputs(view: _View, here: set[int], waiting: list[int]) -> None:
    while waiting:
        u = waiting.pop()
        if u not in here:
            here.add(u)
            waiting += view.units.inputs[u]


def _makers(view: _View, made: list[set[int]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for p, here in enumerate(made):
        for u in here:
            if view.home.get(u, p) == p:
                for position in view.units.members[u]:
                    found.setdefault(position, p)
    return found
