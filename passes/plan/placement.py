"""Where free nodes stand: each part makes or receives what it needs, so that the least traffic results."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import networkx as nx

from ..graph.facts import PYTHON_VALUE, Facts
from .availability import Reach
from .units import Kind, Units

_THERE, _NEEDED = -1, -2  # the two ends of a flow


@dataclass(frozen=True)
class Placed:
    """The nodes of each part, in graph order, and the part from which others get a value."""

    members: tuple[tuple[int, ...], ...]
    maker: dict[int, int]


def place(facts: Facts, units: Units, part: Mapping[int, int], count: int) -> Placed:
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
    """
    reach = Reach(facts, units, part, count)
    made: list[set[int]] = [set() for _ in range(count)]
    wanted: list[set[int]] = [set() for _ in range(count)]
    for u, p in part.items():
        made[p].add(u)
        wanted[p].update(reach.free_inputs(u))
    for u in reach.ends:
        wanted[reach.home[u]].add(u)
    for p in reversed(range(count)):
        here, received = _choose(reach, p, wanted[p])
        made[p] |= here
        for u in received:
            wanted[reach.home[u]].add(u)
    _fetch_fixed(reach, made)
    members = tuple(tuple(sorted(x for u in here for x in units.members[u])) for here in made)
    return Placed(members, _makers(reach, made))


def _choose(reach: Reach, p: int, wanted: Iterable[int]) -> tuple[set[int], set[int]]:
    """What a part makes and what it receives, of the free units that it wants."""
    made: set[int] = set()
    undecided: set[int] = set()
    waiting = sorted(wanted)
    while waiting:  # no choice: it is at hand, or nobody else can make it
        u = waiting.pop()
        if u in made or u in undecided:
            continue
        if reach.at_hand[u] >> p & 1 or not reach.receivable(u, p):
            made.add(u)
            waiting += reach.free_inputs(u)
        else:
            undecided.add(u)
    sizes = {u for u in undecided if _is_size(reach, u)}
    if undecided == sizes:
        return made, sizes
    received = _cheapest(reach, p, sorted(undecided - sizes), made)
    return made | _behind(reach, undecided - sizes, received), sizes | received


def _is_size(reach: Reach, u: int) -> bool:
    """Too small to be worth a search."""
    return reach.cost(u) <= PYTHON_VALUE


def _cheapest(reach: Reach, p: int, wanted: list[int], made: Set[int]) -> set[int]:
    """The free units to receive: those in a minimum cut of all from which the wanted ones can be made.

        there ─► h ══bytes══► h ─► h > 0 ══bytes══► h > 0 ─► any ══bytes══► any ─► needed

    Each unit is an edge with its cost; a cut edge is received, what lies behind it is made.
    """
    known = made | {i for u in made for i in reach.units.inputs[u]}  # here by now, whatever it cost
    flow = nx.DiGraph([(2 * u + 1, _NEEDED) for u in wanted])
    waiting, seen = list(wanted), set(wanted)
    while waiting:
        u = waiting.pop()
        leaf = not reach.free[u]
        flow.add_edge(2 * u, 2 * u + 1, **({"capacity": reach.cost(u)} if leaf or reach.receivable(u, p) else {}))
        if leaf or (reach.receivable(u, p) and _is_size(reach, u)):
            flow.add_edge(_THERE, 2 * u)
            continue
        new = [i for i in reach.units.inputs[u] if not reach.at_hand[i] >> p & 1 and i not in known]
        flow.add_edges_from((2 * i + 1, 2 * u) for i in new)
        waiting += set(new) - seen
        seen.update(new)
    if _THERE not in flow:
        return set()
    _, (there, needed) = nx.minimum_cut(flow, _THERE, _NEEDED)
    return {u for u in seen if reach.free[u] and 2 * u in there and 2 * u + 1 in needed}


def _behind(reach: Reach, wanted: Iterable[int], received: Set[int]) -> set[int]:
    """All that has to be made for what is wanted, given what is received."""
    made: set[int] = set()
    waiting = list(wanted)
    while waiting:
        u = waiting.pop()
        if u not in made and u not in received:
            made.add(u)
            waiting += reach.free_inputs(u)
    return made


def _fetch_fixed(reach: Reach, made: list[set[int]]) -> None:
    """Give each part its own copy of the parameters and constants that it uses, and of what is made of them alone."""
    fixed = [kind is Kind.FIXED for kind in reach.units.kinds]
    for here in made:
        _add_with_inputs(reach.units, here, [i for u in here for i in reach.units.inputs[u] if fixed[i]])
    outputs = {reach.units.of[x] for x, fact in enumerate(reach.facts) if fact.handed and fixed[reach.units.of[x]]}
    _add_with_inputs(reach.units, made[0], sorted(outputs - set().union(*made)))


def _add_with_inputs(units: Units, here: set[int], waiting: list[int]) -> None:
    while waiting:
        u = waiting.pop()
        if u not in here:
            here.add(u)
            waiting += units.inputs[u]


def _makers(reach: Reach, made: list[set[int]]) -> dict[int, int]:
    """The part that gives a value to others: of a free one, its home."""
    found: dict[int, int] = {}
    for p, here in enumerate(made):
        for x in (x for u in here if reach.home.get(u, p) == p for x in reach.units.members[u]):
            found.setdefault(x, p)
    return found
