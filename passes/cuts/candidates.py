"""A graph as a line: its nodes in order, and what flows over each place between two of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from networkx.utils import UnionFind
from torch import fx

from ..graph.facts import facts_of
from ..plan.aliasing import ties, written_memory
from .cost import costs
from .linear_partition import Chain

Edge = tuple[fx.Node, fx.Node]
_DEPTHS = 1 << 14  # more than the depths of all cuts together: bytes come first
_MOST_BYTES, _MOST_DEPTH = 1 << 40, 63


@dataclass(frozen=True)
class Place:
    """Between two nodes of a line: before the one with this number."""

    before: int
    values: int  # that cross; what begins at the model's inputs behind it counts too: it will be a part beside others
    bytes: int
    depth: int  # how many modules are around both nodes

    @property
    def width(self) -> tuple[int, int, int]:
        """Less is better."""
        return self.values, self.bytes, self.depth


class Line:
    """The nodes of a graph that carry a gradient, in graph order. What is made of weights alone is not among them."""

    def __init__(self, graph: fx.Graph, cost: str):
        self.facts = facts_of(graph)
        self._fixed = self._made_of_weights()
        self.nodes = [x for x in self.facts.computed if self.facts[x].gradient and x not in self._fixed]
        self.at = {x: i for i, x in enumerate(self.nodes)}
        self.inputs = [[self.at[x] for x in self.facts[p].inputs if x in self.at] for p in self.nodes]
        self.fed = self._fed()
        self.begins = self._begins()
        self.spent = [0, *accumulate(self._costs(cost))]
        learns = (self.facts[x].trained or any(map(self._fixed.get, self.facts[x].inputs)) for x in self.nodes)
        self.learned = [0, *accumulate(map(int, learns))]

    def places(self, max_bytes: int | None = None) -> list[Place]:
        """The candidates in order, one between each two nodes that learn: where least crosses, the last of several."""
        best: dict[int, Place] = {}
        for place in self._open():
            learned = self.learned[place.before]
            inside = 0 < learned < self.learned[-1]
            if inside and (max_bytes is None or place.bytes <= max_bytes):
                old = best.get(learned, place)
                best[learned] = place if place.width <= old.width else old
        return list(best.values())

    def chain(self, places: Sequence[Place]) -> Chain:
        """The line with these places to cut at. Their weights are the crossing bytes, then the depth in modules."""
        before = [self.spent[self.nodes[place.before]] for place in places]
        weights = [min(p.bytes, _MOST_BYTES) * _DEPTHS + min(p.depth, _MOST_DEPTH) for p in places]
        return Chain(before, self.spent[-1], weights)

    def cut(self, places: Sequence[Place]) -> list[Edge]:
        """The edges to cut for parts that change at these places, in graph order."""
        part = self._parts(places)
        cut = [(i, j) for j, inputs in enumerate(self.inputs) for i in inputs if part[i] != part[j]]
        return [(self._node(i), self._node(j)) for i, j in sorted(cut)]

    def holds_together(self, places: Sequence[Place]) -> bool:
        """Whether the parts are surely these: each hangs together by its own values, and lies behind the one before."""
        part, whole = self._parts(places), UnionFind(range(len(self.nodes)))
        for j, inputs in enumerate(self.inputs):
            whole.union(j, *(i for i in (*inputs, self.fed[j]) if i >= 0 and part[i] == part[j]))
        late = any(part[i] for i in self.begins)  # no cut lies before that: it will be a part of the first level
        return not late and len({whole[i] for i in range(len(self.nodes))}) == len(places) + 1

    def shares(self, places: Sequence[Place]) -> list[float]:
        """What each stretch between these places costs, of the whole."""
        ends = [0, *(self.spent[self.nodes[place.before]] for place in places), self.spent[-1]]
        return [(b - a) / (self.spent[-1] or 1) for a, b in pairwise(ends)]

    def _parts(self, places: Sequence[Place]) -> list[int]:
        """The part of each node, so that its number is the number of cuts on a path to it.

        What reads nothing of its own part nor of the one before goes to where its inputs are: it stands on a skip over
        several cuts, and is on the level below.
        """
        starts = {place.before for place in places}
        part: list[int] = []
        now = 0
        for i, inputs in enumerate(self.inputs):
            now += i in starts
            before = [part[j] for j in (*inputs, self.fed[i]) if j >= 0]
            here = not before or max(before) == now or any(part[j] == now - 1 for j in inputs)
            part.append(now if here else max(before))
        return part

    def _open(self) -> Iterable[Place]:
        """The places that no tie spans and something crosses; where the same values cross several, the last.

        What lies between two places that the same values cross is a side exit, and no part of the line by itself.
        """
        count = len(self.nodes)
        values, sizes, marks, tied = ([0] * (count + 1) for _ in range(4))
        for i, x in enumerate(self.nodes):
            last = max((self.at[user] for user in self.facts[x].users if user in self.at), default=i)
            _span(values, i, last, 1)
            _span(sizes, i, last, self.facts[x].bytes)
            _span(marks, i, last, hash((i, last)))  # their sums tell sets of values apart
        for i in self.begins:
            _span(values, 0, i, 1)
        for tie in ties(self.facts, written_memory(self.facts)):
            held = [self.at[x] for x in tie if x in self.at]
            _span(tied, min(held, default=0), max(held, default=0), 1)
        stacks = [tuple(self._node(i).meta.get("nn_module_stack") or ()) for i in range(count)]
        found: dict[int, Place] = {}
        flowing = zip(*map(accumulate, (values, sizes, marks, tied)), strict=True)
        for i, (crossing, size, mark, spanned) in enumerate(flowing):
            if 0 < i < count and mark and not spanned:
                found.pop(mark, None)  # the new one stands behind all that came between
                found[mark] = Place(i, crossing, size, _shared(stacks[i - 1], stacks[i]))
        return found.values()

    def _begins(self) -> list[int]:
        """Where something begins that comes from the model's inputs alone, after the first."""
        roots = (i for i, inputs in enumerate(self.inputs) if not inputs and self.fed[i] < 0)
        return [i for i in roots if not set(self.facts[self.nodes[i]].inputs) <= self._fixed.keys()][1:]

    def _made_of_weights(self) -> dict[int, bool]:
        """Parameters, constants and what is made of them alone, which every part makes for itself; and if it learns."""
        found: dict[int, bool] = {}
        for x, fact in enumerate(self.facts):
            pure = fact.kind == "computed" and not (fact.random or fact.writes or fact.buffers or fact.parameters)
            if fact.kind == "constant" or (pure and all(i in found for i in fact.inputs)):
                found[x] = fact.trained or any(found[i] for i in fact.inputs)
        return found

    def _costs(self, kind: str) -> list[int]:
        """What each node costs; what is made of weights is paid for where it is first used."""
        found = costs(self.facts, kind)
        for x in reversed(self._fixed):
            if users := self.facts[x].users:
                found[min(users)] += found[x]
                found[x] = 0
        return found

    def _fed(self) -> list[int]:
        """For each node the last one from which sizes, masks and the like lead to it; -1: none."""
        found = [-1] * len(self.facts)
        for x, fact in enumerate(self.facts):
            if x not in self._fixed:
                found[x] = max((self.at.get(i, found[i]) for i in fact.inputs), default=-1)
        return [max((found[i] for i in self.facts[x].inputs if i not in self.at), default=-1) for x in self.nodes]

    def _node(self, i: int) -> fx.Node:
        return self.facts[self.nodes[i]].node


def _span(changes: list[int], first: int, last: int, amount: int) -> None:
    """Count an amount for all places between two nodes."""
    changes[first + 1] += amount
    changes[last + 1] -= amount


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
