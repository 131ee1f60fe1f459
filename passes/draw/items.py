"""What a drawing shows, before it has a place: a graph of inputs, parts, crossings and outputs, with their words.

    input ─► part ─► crossing ─► part ─► output
                        └──────► part

A crossing is a node of its own, because one value may reach several parts; what stands on it is written there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ..errors import PlanError, nearest
from ..plan.plan import (
    UNKNOWN,
    Crossing,
    Part,
    Plan,
    amount,
    amount_of_bytes,
    amount_of_flops,
    costs,
    headline,
    holds,
    percent,
    some,
    stands,
    value,
)

Net = Any  # nx.DiGraph: networkx is untyped

LONGEST = 40  # characters of a line; the tooltip has the whole


@dataclass(frozen=True)
class Item:
    """One thing in the drawing."""

    key: str  # unique and plain: p0, c3, i1, o0
    kind: str  # "input", "part", "crossing" or "output"
    style: str  # of a crossing: the boundary's name, "boundary" or "as it is"; else the kind
    name: str
    lines: tuple[str, ...]  # below the name
    tip: str
    asked: bool = True  # False: a crossing that goes around the cuts
    share: float | None = None  # of a part: how much of the model's parameters it holds


def net(plan: Plan) -> Net:
    """The plan as a graph: each node's "item" is what to show, its "layer" the row to show it in.

    Guarantees:
        Each edge leads to a later layer; parts are in odd layers, all else in even ones.
        A crossing is in the layer after its producer, an input in the layer before its first reader.

    Raises:
        PlanError: a crossing names a part that is not there, or the parts go in a circle.
    """
    if misfits := list(_misfits(plan)):
        raise PlanError(misfits)

    graph: Net = nx.DiGraph(title=headline(plan), subtitle=costs(plan))
    key_of = {part.name: f"p{index}" for index, part in enumerate(plan.parts)}
    total = sum(part.parameters for part in plan.parts)
    for part in plan.parts:
        graph.add_node(key_of[part.name], item=_part(key_of[part.name], part, total))
    for index, crossing in enumerate(plan.crossings):
        key = f"c{index}"
        graph.add_node(key, item=_crossing(key, crossing))
        graph.add_edge(key_of[crossing.producer], key)
        graph.add_edges_from((key, key_of[name]) for name in crossing.consumers)
    for index, name in enumerate(plan.inputs):
        key = f"i{index}"
        graph.add_node(key, item=_end(key, "input", name))
        graph.add_edges_from((key, key_of[part.name]) for part in plan.parts if name in part.inputs)
    crossing_nodes = {(c.producer, c.node) for c in plan.crossings}
    outputs = [(part, name) for part in plan.parts for name in part.outputs if (part.name, name) not in crossing_nodes]
    for index, (part, name) in enumerate(outputs):
        key = f"o{index}"
        graph.add_node(key, item=_end(key, "output", name))
        graph.add_edge(key_of[part.name], key)
    _set_layers(graph)
    return graph


def items(graph: Net) -> list[Item]:
    """Everything that the graph shows, in the order of the plan."""
    return [item for _, item in graph.nodes(data="item")]


def _misfits(plan: Plan) -> Iterator[str]:
    names = [part.name for part in plan.parts]
    for crossing in plan.crossings:
        for name in (crossing.producer, *crossing.consumers):
            if name not in names:
                yield f"crossing {crossing.name!r}: there is no part {name!r}{nearest(name, names)}"
    steps = nx.DiGraph((c.producer, name) for c in plan.crossings for name in c.consumers)
    if not nx.is_directed_acyclic_graph(steps):
        circle = [a for a, _ in nx.find_cycle(steps)]
        yield f"parts wait for each other: {' → '.join([*circle, circle[0]])}"


def _set_layers(graph: Net) -> None:
    """Give each node the length of the longest path to it; an input comes down to just above its first reader."""
    rooted = graph.copy()
    rooted.add_edges_from(("root", item.key) for item in items(graph))  # a part that reads nothing is no input
    rooted.remove_edges_from([("root", key) for key in graph if key[0] == "i"])
    for layer, keys in enumerate(nx.topological_generations(rooted)):
        for key in keys:
            rooted.nodes[key]["layer"] = layer
    for item in items(graph):
        readers = [rooted.nodes[reader]["layer"] - 1 for reader in graph.successors(item.key)]
        layer = min(readers, default=0) if item.kind == "input" else rooted.nodes[item.key]["layer"]
        graph.nodes[item.key]["layer"] = layer


def _part(key: str, part: Part, total: int) -> Item:
    flops = "" if part.flops is None else f" · {amount_of_flops(part.flops)}"
    cost = f"{amount(part.parameters)} parameters{flops}"
    tip = (
        part.name,
        f"nodes: {some(part.nodes, 40)}",
        f"reads: {some(part.inputs, 20)}",
        f"hands on: {some(part.outputs, 20)}",
        f"{cost}, {percent(part.parameters, total)} of the parameters",
    )
    share = part.parameters / total if total else None
    return Item(key, "part", "part", part.name, (_holds(part), cost), "\n".join(tip), share=share)


def _holds(part: Part) -> str:
    """First and last node, the ends of long names kept: they tell most."""
    if len(part.nodes) < 2:
        return holds(part)
    room = LONGEST // 2 - 5
    return f"{short(part.nodes[0], room)} … {short(part.nodes[-1], room)} ({len(part.nodes)})"


def _crossing(key: str, crossing: Crossing) -> Item:
    size = amount_of_bytes(crossing)
    parameters = f"{amount(crossing.head_parameters)} parameters" if crossing.head else None
    what = " · ".join(known(value(crossing), size))
    standing = " · ".join(known(stands(crossing), short(crossing.head or "", 32), parameters))
    tip = (
        crossing.name,
        f"node: {crossing.node}",
        f"{crossing.producer} → {', '.join(crossing.consumers)}",
        what,
        " · ".join(known(stands(crossing), crossing.head, parameters)),
    )
    style = (crossing.boundary or "boundary") if crossing.gradient else "as it is"
    lines = tuple(known(what, standing))
    return Item(key, "crossing", style, crossing.name, lines, "\n".join(known(*tip)), asked=crossing.asked)


def _end(key: str, kind: str, name: str) -> Item:
    return Item(key, kind, kind, name, (), f"{kind} of the model: {name}")


def known(*words: str | None) -> list[str]:
    """The words that say something."""
    return [word for word in words if word and word != UNKNOWN]


def short(words: str, most: int = LONGEST) -> str:
    """The words with their middle left out where they are too long."""
    if len(words) <= most:
        return words
    head = (most - 1) // 2
    return f"{words[:head]}…{words[len(words) - (most - 1 - head) :]}"
