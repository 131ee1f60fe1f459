"""From edges to cut to parts, the values that cross between them, and the plan that says so."""

from collections.abc import Collection, Sequence

from torch import fx

from ..errors import CutError
from ..graph.facts import Fact, Facts, read
from .crossings import Flow, around, crossings, part_name
from .merge import prune
from .part_graph import Draft, draft
from .placement import Placed, place
from .plan import Part, Plan


def partition(
    graph: fx.Graph,
    cuts: Collection[tuple[fx.Node, fx.Node]],
    model: str = "",
    capture: str = "",
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of the parts into which `cuts` divide a graph.

        x ─► conv1 ─► relu ─┼─► conv2 ─► add ─► fc        part_0: conv1 relu    part_1: conv2 add fc
                       └──────────────────┘               relu crosses once, to conv2 and to add

    A node's level is the largest number of cut edges on a path to it; what hangs together on one level is a part. What
    leads around the cuts from one part to another is cut too. `partitioning` has the rules: `ties` for values changed
    in place, `draft` for levels and random numbers, `prune` for parts that nobody asked for or that cannot learn,
    `place` for sizes and masks.

    Args:
        model: the class name of the model.
        capture: how it was captured.
        notes: what the plan says before its own notes.

    Requires:
        `graph` is flat, and its nodes say what `annotate` notes.
        `cuts` are edges of `graph`.

    Guarantees:
        `graph` is unchanged.
        Every node stands in a part. Parts that run one after the other do what the graph does, random numbers and
        changing buffers included, also if each gets copies of the values that it reads.
        A value flows to later parts only, and never to a lower level; along a cut the level rises.
        Parameters, and what is made of parameters and constants alone, never cross.
        Of several parts, one without trained parameters hands gradients from a later part to an earlier one.
        If no cut separates anything, there is one part. Each cut that was moved or dropped, and each value with a
        gradient that goes around the cuts, has a note.

    Raises:
        CutError: cuts are no edges of the graph, or lie inside an in-place write and have nowhere to go.
    """
    facts = read(graph)
    found = draft(facts, _edges(facts, cuts))
    prune(facts, found)
    order = found.order()
    number = {part: at for at, part in enumerate(order)}
    placed = place(facts, found.units, {unit: number[part] for unit, part in found.part.items()}, len(order) or 1)
    flow = Flow(facts, placed)
    crossing = crossings(facts, found, flow)
    return Plan(
        model,
        capture,
        cuts=tuple((facts[a].name, facts[b].name) for a, b in sorted(found.cuts)),
        parts=_parts(facts, placed, flow, _levels(found, order)),
        crossings=crossing,
        inputs=tuple(fact.name for fact in facts if fact.kind == "input"),
        notes=(*notes, *found.notes, *around(crossing)),
    )


def _edges(facts: Facts, cuts: Collection[tuple[fx.Node, fx.Node]]) -> frozenset[tuple[int, int]]:
    """The cuts by position. What enters the output node cannot be cut: nothing follows it."""
    inner = [(a, b) for a, b in cuts if b.op != "output"]
    wrong = [(a, b) for a, b in inner if a not in facts.at or b not in facts.at or a not in b.all_input_nodes]
    if wrong:
        raise CutError([f"cut between '{a}' and '{b}': the graph has no such edge" for a, b in wrong])
    return frozenset((facts.at[a], facts.at[b]) for a, b in inner)


def _levels(found: Draft, order: Sequence[int]) -> list[int]:
    """For each part the largest number of cuts on a path of values to it."""
    level: dict[int, int] = {}
    for part in order:
        before = found.graph.in_edges(part, data=True)
        level[part] = max((level[q] + bool(edge["cuts"]) for q, _, edge in before if edge["data"]), default=0)
    return list(level.values()) or [0]


def _parts(facts: Facts, placed: Placed, flow: Flow, levels: Sequence[int]) -> tuple[Part, ...]:
    def names(positions: Sequence[int]) -> tuple[str, ...]:
        return tuple(facts[x].name for x in positions)

    parts = []
    for at, members in enumerate(placed.members):
        held = [facts[x] for x in members]
        scalars = {name: count for fact in held for name, count, _ in fact.parameters}  # each parameter once
        reads, hands = names(flow.reads[at]), names(flow.hands[at])
        parts.append(Part(part_name(at), levels[at], names(members), reads, hands, sum(scalars.values()), _flops(held)))
    return tuple(parts)


def _flops(held: Sequence[Fact]) -> int | None:
    measured = [fact.node.meta["flops"] for fact in held if "flops" in fact.node.meta]
    return sum(measured) if measured else None
