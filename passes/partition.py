"""From edges to cut to parts, the values that cross between them, and the plan that says so."""

from collections.abc import Collection
from dataclasses import dataclass

import networkx as nx
from torch import fx

from .errors import CutError
from .partitioning import naming
from .partitioning.facts import Fact, Facts, read
from .partitioning.order import Draft, draft
from .partitioning.place import Placed, place
from .partitioning.prune import prune
from .partitioning.units import Kind, Units
from .plan import Crossing, Part, Plan


@dataclass(frozen=True)
class Partition:
    """The parts of a graph in running order, and what flows between them. Names are those of the graph's nodes."""

    parts: tuple[Part, ...]
    crossings: tuple[Crossing, ...]
    cuts: tuple[tuple[str, str], ...]  # the edges that separate parts, after moving and dropping
    inputs: tuple[str, ...]
    notes: tuple[str, ...]

    def where(self) -> dict[str, tuple[int, ...]]:
        """The numbers of the parts in which each node stands: several where it is made again rather than sent."""
        found: dict[str, tuple[int, ...]] = {}
        for number, part in enumerate(self.parts):
            for name in part.nodes:
                found[name] = (*found.get(name, ()), number)
        return found


def partition(graph: fx.Graph, cuts: Collection[tuple[fx.Node, fx.Node]]) -> Partition:
    """The parts into which `cuts` divide a graph.

        x ─► conv1 ─► relu ─┼─► conv2 ─► add ─► fc        level 0: conv1 relu, level 1: conv2 add fc
                       └──────────────────┘               relu crosses once, to conv2 and to add

    A node's level is the largest number of cut edges on a path to it; what hangs together on one level is a part. What
    the user did not cut but leads from one part to another is cut too. See `partitioning`: `ties` for values changed in
    place, `order` for levels and random numbers, `prune` for parts that cannot learn, `place` for masks and sizes.

    Requires:
        `graph` is flat, and its nodes say what `annotate` notes; without an example, names have to do.
        `cuts` are edges of `graph`.

    Guarantees:
        `graph` is unchanged.
        Every node stands in a part; run one after the other the parts do what the graph does, random numbers included.
        Parts depend on one another without a cycle, and on lower levels only.
        Both ends of each edge in `Partition.cuts` are in different parts, or made again on both sides.
        No part but a single one is a prefix or suffix without trained parameters.
        Parameters, and what is made of them alone, never cross.
        If no cut separates anything, there is one part. Each cut that was moved or dropped, and each value with a
        gradient that goes around the cuts, has a note.

    Raises:
        CutError: a cut is no edge of the graph, or lies inside an in-place write and has nowhere to go.
    """
    facts = read(graph)
    found = prune(facts, draft(facts, _edges(facts, cuts)))
    order = found.order() or [0]
    number = {part: at for at, part in enumerate(order)}
    anchored = {unit: number[part] for unit, part in found.part.items()}
    placed = place(facts, found.units, anchored, len(order))
    values = _Values(facts, placed)
    crossings = _crossings(facts, found, values)
    return Partition(
        parts=_made_parts(facts, placed, values, _levels(found.graph, order)),
        crossings=crossings,
        cuts=tuple((facts[a].name, facts[b].name) for a, b in sorted(found.cuts)),
        inputs=tuple(fact.name for fact in facts if fact.kind == "input"),
        notes=(*found.notes, *_around(crossings)),
    )


def to_plan(graph: fx.Graph, found: Partition, model: str, capture: str) -> Plan:
    """The partition as a plan of a model, captured in some way."""
    return Plan(model, capture, found.cuts, found.parts, found.crossings, found.inputs, found.notes)


def _edges(facts: Facts, cuts: Collection[tuple[fx.Node, fx.Node]]) -> frozenset[tuple[int, int]]:
    inner = [(a, b) for a, b in cuts if b.op != "output"]
    wrong = [(a, b) for a, b in inner if a not in facts.at or b not in facts.at or a not in b.all_input_nodes]
    if wrong:
        raise CutError([f"cut between '{a}' and '{b}': the graph has no such edge" for a, b in wrong])
    return frozenset((facts.at[a], facts.at[b]) for a, b in inner)


def _name(part: int) -> str:
    return f"part_{part}"


def _levels(graph: nx.DiGraph, order: list[int]) -> list[int]:
    """For each part the largest number of cuts on a path to it. Only data counts."""
    level: dict[int, int] = {}
    for part in order:
        before = graph.in_edges(part, data=True) if part in graph else ()
        level[part] = max((level[q] + bool(edge["cuts"]) for q, _, edge in before if edge["data"]), default=0)
    return [level[part] for part in order]


class _Values:
    """Which part reads and hands on which value."""

    def __init__(self, facts: Facts, placed: Placed):
        self.reads: list[tuple[int, ...]] = []
        self.consumers: dict[int, list[int]] = {}
        for part, members in enumerate(placed.members):
            here = set(members)
            reads = sorted({i for x in members for i in facts[x].inputs} - here)
            self.reads.append(tuple(reads))
            for value in reads:
                if facts[value].kind != "input":
                    self.consumers.setdefault(value, []).append(part)
        computed = {value for value in facts.handed if facts[value].kind != "input"}
        self.hands: list[list[int]] = [[] for _ in placed.members]
        for value in sorted(computed | self.consumers.keys()):
            self.hands[placed.maker[value]].append(value)
        self.placed, self.inside = placed, [set(members) for members in placed.members]


def _made_parts(facts: Facts, placed: Placed, values: _Values, levels: list[int]) -> tuple[Part, ...]:
    parts = []
    for at, members in enumerate(placed.members):
        held = [facts[x] for x in members]
        parts.append(
            Part(
                name=_name(at),
                level=levels[at],
                nodes=tuple(fact.name for fact in held),
                inputs=tuple(facts[x].name for x in values.reads[at]),
                outputs=tuple(facts[x].name for x in values.hands[at]),
                parameters=sum({name: count for fact in held for name, count, _ in fact.parameters}.values()),
                flops=_flops(held),
            )
        )
    return tuple(parts)


def _flops(held: list[Fact]) -> int | None:
    measured = [fact.node.meta["flops"] for fact in held if "flops" in fact.node.meta]
    return sum(measured) if measured else None


def _crossings(facts: Facts, found: Draft, values: _Values) -> tuple[Crossing, ...]:
    paths = naming.paths(facts)
    asked = _Asked(facts, found.units, found.cuts)
    taken: set[str] = set()
    crossings = []
    for value in sorted(values.consumers):
        fact, parts = facts[value], values.consumers[value]
        meta = fact.node.meta
        crossings.append(
            Crossing(
                name=_unique(paths.get(value, fact.name), taken),
                node=fact.name,
                producer=_name(values.placed.maker[value]),
                consumers=tuple(map(_name, parts)),
                shape=tuple(meta["shape"]) if "shape" in meta else None,
                dtype=str(meta["dtype"]).removeprefix("torch.") if "dtype" in meta else None,
                bytes=meta.get("bytes", 0),
                gradient=fact.gradient,
                asked=any(asked(value, user) for part in parts for user in fact.users if user in values.inside[part]),
            )
        )
    return tuple(crossings)


def _unique(name: str, taken: set[str]) -> str:
    """Different from all others also where dots must not be (the boundaries' keys)."""
    count, unique = 1, name
    while unique.replace(".", "_") in taken:
        count += 1
        unique = f"{name}@{count}"
    taken.add(unique.replace(".", "_"))
    return unique


class _Asked:
    """Whether a user's cut lies on the way of a value: on its edge, or next to it among free nodes."""

    def __init__(self, facts: Facts, units: Units, cuts: frozenset[tuple[int, int]]):
        self.units, self.cuts = units, cuts
        cut = units.pairs(cuts)
        free = [kind is Kind.FREE for kind in units.kinds]
        self.above, self.below = [False] * len(units), [False] * len(units)
        for u in (u for u in range(len(units)) if free[u]):
            self.above[u] = any((i, u) in cut or self.above[i] for i in units.inputs[u])
        for u in reversed([u for u in range(len(units)) if free[u]]):
            self.below[u] = any((u, v) in cut or self.below[v] for v in units.users[u])

    def __call__(self, value: int, user: int) -> bool:
        return (value, user) in self.cuts or self.above[self.units.of[value]] or self.below[self.units.of[user]]


def _around(crossings: tuple[Crossing, ...]) -> list[str]:
    return [
        f"'{c.name}' goes around the cuts (used in {', '.join(c.consumers)}): cut too"
        for c in crossings
        if c.gradient and not c.asked
    ]
