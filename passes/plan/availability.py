"""Where values come from, where they go, and which parts have them anyway. Sets of parts are the bits of a number."""

from collections.abc import Iterable, Mapping, Sequence

from ..graph.facts import Facts
from .units import Kind, Units


def bits(found: int) -> Iterable[int]:
    """The numbers in a set of bits, in order."""
    while found:
        lowest = found & -found
        yield lowest.bit_length() - 1
        found ^= lowest


def union(units: Iterable[int], found: Sequence[int]) -> int:
    """All parts of several units."""
    parts = 0
    for u in units:
        parts |= found[u]
    return parts


def sources(units: Units, part: Mapping[int, int]) -> list[int]:
    """For each unit the parts that its value comes from: its own, or those that a free one is computed from."""
    found = [0] * len(units)
    for u, kind in enumerate(units.kinds):
        if kind is Kind.ANCHORED:
            found[u] = 1 << part[u]
        elif kind is Kind.FREE:
            found[u] = union(units.inputs[u], found)
    return found


def targets(units: Units, part: Mapping[int, int]) -> list[int]:
    """For each unit the parts that its value goes to: its own, or those that use what is not anchored."""
    found = [0] * len(units)
    for u in reversed(range(len(units))):
        found[u] = 1 << part[u] if u in part else union(units.users[u], found)
    return found


class Reach:
    """What the parts can have of each unit, before any choice is made. Parts are numbered in running order."""

    def __init__(self, facts: Facts, units: Units, part: Mapping[int, int], count: int):
        self.facts, self.units, self.part, self.count = facts, units, part, count
        self.free = [kind is Kind.FREE for kind in units.kinds]
        self.ends = [u for u in range(len(units)) if self.free[u] and self._is_end(u)]
        self.sources = sources(units, part)
        self.above = self._above()
        self.at_hand = self._at_hand()
        self.home = self._homes()

    def free_inputs(self, u: int) -> Iterable[int]:
        """The free units that a unit reads."""
        return (i for i in self.units.inputs[u] if self.free[i])

    def receivable(self, u: int, p: int) -> bool:
        """Part `p` may ask another for this free unit."""
        return self.home[u] != p and bool(self.above[p] >> self.home[u] & 1)

    def cost(self, u: int) -> int:
        """Bytes to receive the values of a unit."""
        of = self.units.of
        leaving = (self.facts[x] for x in self.units.members[u] if any(of[user] != u for user in self.facts[x].users))
        return max(1, sum(fact.bytes for fact in leaving))

    def _is_end(self, u: int) -> bool:
        """A guard or another effect, or an output of the model: needed whoever uses it."""
        return any(self.facts[x].effect or self.facts[x].handed for x in self.units.members[u])

    def _above(self) -> list[int]:
        """For each part those on which it depends, itself included."""
        direct = [1 << p for p in range(self.count)]
        for u, p in self.part.items():
            direct[p] |= union(self.units.inputs[u], self.sources)
        above = _closed(direct)
        for u in self.ends:  # one over parts that nobody joins: the last of them has to wait for the others
            source = self.sources[u]
            top = source.bit_length() - 1
            if source and all(source & ~above[p] for p in range(top, self.count)):
                direct[top] |= source
        return _closed(direct)

    def _at_hand(self) -> list[int]:
        """For each unit the parts that have it without receiving anything for it."""
        found = [(1 << self.count) - 1] * len(self.units)
        for u, kind in enumerate(self.units.kinds):
            if kind is Kind.FREE:
                for i in self.units.inputs[u]:
                    found[u] &= found[i]
            elif kind is not Kind.FIXED:
                readers = (1 << self.part[user] for user in self.units.users[u] if user in self.part)
                found[u] = self.sources[u]
                for reader in readers:
                    found[u] |= reader
        return found

    def _homes(self) -> dict[int, int]:
        """The part in which a free unit is made for others: the first that can without waiting for more."""
        ends, wanted = set(self.ends), [0] * len(self.units)
        homes: dict[int, int] = {}
        for u in reversed(range(len(self.units))):
            if u in self.part:
                wanted[u] = 1 << self.part[u]
                continue
            wanted[u] = union(self.units.users[u], wanted)
            if self.free[u]:
                homes[u] = self._home(u, wanted[u], u in ends)
                wanted[u] |= (u in ends) << homes[u]
        return homes

    def _home(self, u: int, wanted: int, end: bool) -> int:
        if source := self.sources[u]:
            return next(p for p in range(source.bit_length() - 1, self.count) if not source & ~self.above[p])
        return 0 if end else next(iter(bits(wanted | self.at_hand[u])), 0)


def _closed(direct: Sequence[int]) -> list[int]:
    above: list[int] = []
    for p, found in enumerate(direct):
        above.append(found | union(bits(found & ~(1 << p)), above))
    return above
