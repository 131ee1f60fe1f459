"""From the edges to cut to a plan: the parts, the values that cross between them, and why."""

from collections.abc import Collection, Sequence

from torch import fx

from ..errors import CutError
from ..graph.facts import Facts, facts_of
from .crossings import Flow, around, crossings
from .merge import merge
from .part_graph import PartGraph, part_graph
from .placement import place
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

    A node's level is the largest number of cut edges on a path to it; a part is what is connected on one level. A value
    that leads around the cuts from one part to another is cut too. The rules are in `aliasing` for values changed in
    place, in `part_graph` for levels and random numbers, in `merge` for parts that nobody asked for or that cannot
    learn, and in `placement` for sizes and masks.

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
    facts = facts_of(graph)
    parts = part_graph(facts, _positions(facts, cuts))
    merge(facts, parts)
    order = parts.order()
    number = dict(zip(order, range(len(order)), strict=True))
    placed = place(facts, parts.units, {unit: number[part] for unit, part in parts.part.items()}, len(order) or 1)
    flow = Flow(facts, placed)
    crossing = crossings(facts, parts.units, parts.cuts, flow)
    return Plan(
        model,
        capture,
        cuts=tuple([(facts[a].name, facts[b].name) for a, b in sorted(parts.cuts)]),
        parts=_parts(facts, parts, placed.members, flow),
        crossings=crossing,
        inputs=tuple([fact.name for fact in facts if fact.kind == "input"]),
        notes=(*notes, *parts.notes, *around(crossing)),
    )


def _positions(facts: Facts, cuts: Collection[tuple[fx.Node, fx.Node]]) -> frozenset[tuple[int, int]]:
    """The cuts by position. An edge to the output node is left out, as nothing follows it."""
    edges, misfits = set(), []
    for a, b in cuts:
        if b.op == "output":
            continue
        if a not in facts.at or b not in facts.at or a not in b.all_input_nodes:
            misfits.append(f"cut between '{a}' and '{b}': the graph has no such edge")
        else:
            edges.add((facts.at[a], facts.at[b]))
    if misfits:
        raise CutError(misfits)
    return frozenset(edges)


def _parts(facts: Facts, parts: PartGraph, members: Sequence[Sequence[int]], flow: Flow) -> tuple[Part, ...]:
    result = []
    level: dict[int, int] = {}  # of each part: the largest number of cuts on a path of values to it
    for number, (part, positions) in enumerate(zip(parts.order() or [0], members, strict=True)):
        level[part] = 0
        for before, _, edge in parts.graph.in_edges([part], data=True):
            if edge["data"]:
                level[part] = max(level[part], level[before] + bool(edge["cuts"]))
        parameters: dict[str, int] = {}  # the scalars of each, once
        flops: int | None = None
        for x in positions:
            for name, scalars, _ in facts[x].parameters:
                parameters |= {name: scalars}
            if "flops" in facts[x].node.meta:
                flops = (flops or 0) + facts[x].node.meta["flops"]
        names, reads, hands = (
            tuple([facts[x].name for x in values]) for values in (positions, flow.reads[number], flow.hands[number])
        )
        result.append(Part(f"part_{number}", level[part], names, reads, hands, sum(parameters.values()), flops))
    return tuple(result)
