"""How many cuts lie before each unit, and which units hang together."""

from collections import defaultdict
from collections.abc import Iterable

from networkx.utils import UnionFind

from .aliasing import Pair
from .units import Kind, Units


def hanging_together(units: Units, cuts: Iterable[Pair], raised: Iterable[Pair]) -> dict[int, int]:
    """The part of each anchored unit: parts are what hangs together by values on one level, numbered by first node.

    Inputs, parameters, constants and what is made of them without a gradient tie nothing together.

    Args:
        raised: pairs of nodes of which the second must not be on a lower level than the first.
    """
    cut = units.pairs(cuts)
    level = _levels(units, cut, units.pairs(raised))
    together = UnionFind(range(len(units)))
    hangs_on: list[set[int]] = [{u} if kind is Kind.ANCHORED else set() for u, kind in enumerate(units.kinds)]
    for u in (u for u, kind in enumerate(units.kinds) if kind in (Kind.ANCHORED, Kind.FREE)):
        near = {together[v] for i in units.inputs[u] if level[i] == level[u] for v in hangs_on[i]}
        if units.kinds[u] is Kind.ANCHORED:
            together.union(u, *near)
        else:
            hangs_on[u] = near  # a size of something here ties what uses it here, but a comparison ties no two towers
    anchored = sorted(units.anchored(), key=lambda u: units.members[u][0])
    number: dict[int, int] = {}
    return {u: number.setdefault(together[u], len(number)) for u in anchored}


def _levels(units: Units, cut: set[Pair], raised: set[Pair]) -> list[int]:
    """The largest number of cut edges on a path to each unit."""
    level = [0] * len(units)
    earlier = defaultdict(list)
    for a, b in raised:
        earlier[b].append(a)
    for u in range(len(units)):
        before = [level[i] + ((i, u) in cut) for i in units.inputs[u]]
        level[u] = max([0, *before, *(level[i] for i in earlier[u])])
    return level
