"""A graph as a line: its nodes in order, and the candidate places to cut it between two of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from torch import fx

from ..graph.facts import Facts, facts_of
from ..plan.aliasing import sequences, ties, written_memory
from ..plan.part_graph import Kind, contract
from .linear_partition import Chain
from .names import Edge

COSTS = ("flops", "time", "memory")
_DEPTHS = 1 << 14  # more than the depths of all cuts together: bytes come first
_MOST_BYTES, _MOST_DEPTH = 1 << 40, 63  # so that the weights of all cuts add up to less than 2^63


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
    """The nodes of a graph that carry a gradient, in graph order. What is made of weights alone is not among them.

    Attributes:
        nodes: their positions in the graph.
        inputs: for each the nodes of the line that it reads.
        fed: for each the last node of the line that a size, mask or the like leads from; -1: none.
        begins: those that depend on the model's inputs alone, without the first.
        spent: the cost of all that lies before each position of the graph.
        learned: the number of nodes with trained parameters before each node.
    """

    def __init__(self, graph: fx.Graph, cost: str):
        self.facts = facts_of(graph)
        memory = written_memory(self.facts)
        self.units = contract(self.facts, ties(self.facts, memory), sequences(self.facts, memory))
        self.fixed = [self.units.kinds[u] is Kind.FIXED for u in self.units.of]
        self.nodes = [x for x in self.facts.computed if self.facts[x].gradient and not self.fixed[x]]
        self.at = {x: i for i, x in enumerate(self.nodes)}
        self.inputs: list[list[int]] = []
        self.fed: list[int] = []
        roots = []
        source = [-1] * len(self.facts)  # the last node of the line that leads to each node of the graph
        for x, fact in enumerate(self.facts):
            beside = max((source[i] for i in fact.inputs if i not in self.at), default=-1)
            if x in self.at:
                source[x] = self.at[x]
                self.inputs.append([self.at[i] for i in fact.inputs if i in self.at])
                self.fed.append(beside)
                if not self.inputs[-1] and beside < 0 and not all(self.fixed[i] for i in fact.inputs):
                    roots.append(self.at[x])
            elif not self.fixed[x]:
                source[x] = max((source[i] for i in fact.inputs), default=-1)
        self.begins = roots[1:]
        self.spent = [0, *accumulate(self._costs(cost))]
        self.learned = [0, *accumulate(int(self.units.trained[self.units.of[x]]) for x in self.nodes)]

    def places(self, max_bytes: int | None = None) -> list[Place]:
        """The candidates in order, one between two nodes that learn: where least crosses, the last of several."""
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
        starts = {place.before for place in places}
        part: list[int] = []  # of each node, as `partition` will number them
        now = 0
        for i, inputs in enumerate(self.inputs):
            now += i in starts
            before = [part[j] for j in (*inputs, self.fed[i]) if j >= 0]
            # A node on a skip over several cuts belongs to the part of its inputs, not to the stretch it stands in.
            here = not before or max(before) == now or any(part[j] == now - 1 for j in inputs)
            part.append(now if here else max(before))
        cut = [(i, j) for j, inputs in enumerate(self.inputs) for i in inputs if part[i] != part[j]]
        return [(self._node(i), self._node(j)) for i, j in sorted(cut)]

    def shares(self, places: Sequence[Place]) -> list[float]:
        """What each stretch between these places costs, of the whole."""
        ends = [0, *(self.spent[self.nodes[place.before]] for place in places), self.spent[-1]]
        return [(b - a) / (self.spent[-1] or 1) for a, b in pairwise(ends)]

    def _open(self) -> Iterable[Place]:
        """The places outside every unit that some value crosses. Of those that the same values cross, the last.

        What lies between two places that the same values cross is a side exit, and no part of the line by itself.
        """
        count = len(self.nodes)
        values, sizes, marks, inside = ([0] * (count + 1) for _ in range(4))
        for i, x in enumerate(self.nodes):
            last = max((self.at[user] for user in self.facts[x].users if user in self.at), default=i)
            _span(values, i, last, 1)
            _span(sizes, i, last, self.facts[x].bytes)
            _span(marks, i, last, hash((i, last)))  # their sums tell sets of values apart
        for i in self.begins:
            _span(values, 0, i, 1)
        for positions in self.units.members:
            members = [self.at[x] for x in positions if x in self.at]
            if len(members) > 1:
                _span(inside, members[0], members[-1], 1)
        stacks = [tuple(self._node(i).meta.get("nn_module_stack") or ()) for i in range(count)]
        places: dict[int, Place] = {}
        flowing = zip(*map(accumulate, (values, sizes, marks, inside)), strict=True)
        for i, (crossing, size, mark, units) in enumerate(flowing):
            if 0 < i < count and mark and not units:
                places.pop(mark, None)  # the new one stands behind all that came between
                places[mark] = Place(i, crossing, size, _shared(stacks[i - 1], stacks[i]))
        return places.values()

    def _costs(self, kind: str) -> list[int]:
        """What each node costs; what is made of weights is paid for where it is first used."""
        result = costs(self.facts, kind)
        for x in reversed(range(len(result))):
            if self.fixed[x] and (users := self.facts[x].users):
                result[min(users)] += result[x]
                result[x] = 0
        return result

    def _node(self, i: int) -> fx.Node:
        return self.facts[self.nodes[i]].node


def _span(changes: list[int], first: int, last: int, amount: int) -> None:
    """Count an amount for all places between two nodes, as its start and its end."""
    changes[first + 1] += amount
    changes[last + 1] -= amount


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many calls two stacks begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def costs(facts: Facts, kind: str) -> list[int]:
    """The cost of each node, in graph order.

    flops: of the forward run, and one for each scalar that is made or changed, so that nothing but views is free.
    time: nanoseconds; flops where the nodes were not timed.
    memory: bytes of the values with a gradient, each storage once; about what autograd keeps for the backward pass.
    """
    if kind == "time" and any("seconds" in fact.node.meta for fact in facts):
        return [round(1e9 * fact.node.meta.get("seconds", 0)) for fact in facts]
    result: list[int] = []
    seen: set[int] = set()  # storages
    for fact in facts:
        meta = fact.node.meta
        new = fact.kind == "computed" and not (fact.holds and fact.holds <= seen)  # no view of what was there
        seen |= fact.holds
        if kind == "memory":
            result.append(fact.bytes if new and fact.gradient else 0)
        else:
            scalars = prod(meta["shape"]) if "shape" in meta else 0
            result.append(int(meta.get("flops", 0)) + scalars * (new or bool(fact.writes)))
    return result
