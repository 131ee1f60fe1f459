"""From the edges to cut to a plan: the parts, the values that cross between them, and why."""

from collections.abc import Collection, Sequence

import networkx as nx
from torch import fx

from ..errors import CutError
from ..graph.facts import Facts, facts_of
from ..graph.mark import mark_name
from .aliasing import Pair
from .part_graph import Kind, PartGraph, Units, part_graph
from .placement import Placement, place
from .plan import AROUND, Crossing, Note, Part, Plan

NOTHING_BEFORE = "nothing before it has a parameter to train"
NOTHING_AFTER = "nothing after it has a parameter to train"


class Flow:
    """Which part reads and which hands on which value.

    Attributes:
        reads: for each part the values that it reads.
        hands: for each part the values that it hands on.
        consumers: value -> part -> the nodes that read it there.
    """

    def __init__(self, facts: Facts, placed: Placement):
        self.maker = placed.maker
        self.reads: list[list[int]] = []
        self.hands: list[list[int]] = []
        self.consumers: dict[int, dict[int, list[int]]] = {}
        for part, members in enumerate(placed.members):
            here, read = set(members), set[int]()
            for x in members:
                read.update(facts[x].inputs)
            self.reads.append(sorted(read - here))
            self.hands.append([])
            for value in self.reads[-1]:
                if facts[value].kind != "input":
                    self.consumers.setdefault(value, {})[part] = [user for user in facts[value].users if user in here]
        for value, fact in enumerate(facts):
            if value in self.consumers or (fact.handed and fact.kind != "input"):
                self.hands[self.maker[value]].append(value)


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


def merge(facts: Facts, parts: PartGraph) -> None:
    """Merge the parts that need not be, and drop the cuts that separate nothing.

        asked    image ─► conv ─┼─► conv ─► add ─► fc        words come in on a lower level than add, but nobody
                          words ─► embed ────┘               asked to cut there: embed joins add
        asked    flatten ─┼─► fc1 ─┼─► fc2 ─┼─► softmax      flatten and softmax have nothing to learn
        made     flatten ───► fc1 ─┼─► fc2 ───► softmax

    A part joins another where that makes no cycle, if
        a gradient flows straight from the one to the other and no cut lies between;
        it has no trained parameter, and no gradient enters it (a prefix): it joins the first part behind it;
        it has none, and no part follows (a suffix): it joins the last part before it.
    The cuts between the two are dropped, and no others: a prefix of two towers joins one and leaves the other alone.

    Guarantees:
        The graph of the parts still has no cycle.
        Where no cut separates two parts any more, all is one part.
    """
    asked = parts.cuts
    reasons: dict[Pair, str] = {}
    while (separating := _separating(parts)) and (join := _next(parts)) is not None:
        part, into, reason = join
        for ends in ((part, into), (into, part)):
            reasons |= dict.fromkeys(parts.graph.get_edge_data(*ends, {"cuts": ()})["cuts"], reason)
        parts.merge(part, into)
    parts.cuts = separating
    if not separating:
        first, *others = parts.order() or [0]
        for other in others:
            parts.merge(other, into=first)
    if lost := asked - parts.cuts:
        parts.notes += _notes(facts, parts, lost, reasons)


def _separating(parts: PartGraph) -> frozenset[Pair]:
    """The cuts that lie between two parts."""
    cuts: frozenset[Pair] = frozenset()
    for _, _, between in parts.graph.edges(data="cuts"):
        cuts |= between
    return cuts


def _next(parts: PartGraph) -> tuple[int, int, str] | None:
    """A part that has to go, the part that it joins, and why."""
    graph, order = parts.graph, parts.order()
    number = dict(zip(order, range(len(order)), strict=True))
    for part in order:
        for into in sorted(graph.successors(part), key=number.__getitem__):
            edge = graph.edges[part, into]
            if edge["gradient"] and not edge["cuts"] and _adjacent(graph, part, into):
                return part, into, ""  # nobody asked to cut there
    for at, part in enumerate(order):
        if graph.nodes[part]["trained"]:
            continue
        learning = any(gradient for *_, gradient in graph.in_edges(part, data="gradient"))
        read = any(data for *_, data in graph.out_edges(part, data="data"))
        reads = any(data for *_, data in graph.in_edges(part, data="data"))
        if not learning and (into := _neighbour(graph, order, part)) is not None:  # a prefix
            return part, into, NOTHING_BEFORE
        if not read and (into := _neighbour(graph.reverse(copy=False), order[::-1], part)) is not None:  # a suffix
            return part, into, NOTHING_AFTER
        if not read and not reads:
            return part, order[at - 1 if at else 1], NOTHING_AFTER  # neighbours in the running order can be joined
    return None


def _neighbour(graph: nx.DiGraph, order: list[int], part: int) -> int | None:
    """The first part of an order that `part` can join: one that it hands values to, else one that only waits for it."""
    readers = [q for q in order if graph.has_edge(part, q) and graph.edges[part, q]["data"]]
    waiting = [q for q in order if graph.has_edge(part, q) and q not in readers]
    return next((q for q in (*readers, *waiting) if readers and _adjacent(graph, part, q)), None)


def _adjacent(graph: nx.DiGraph, a: int, b: int) -> bool:
    """Nothing has to run between two parts, so that they can become one."""
    return not any(nx.has_path(graph, other, b) for other in graph.successors(a) if other != b)


def _notes(facts: Facts, parts: PartGraph, lost: frozenset[Pair], reasons: dict[Pair, str]) -> list[str]:
    """One line for each place at which nothing of the user's cut remains."""
    units = parts.units
    sources, targets = units.sources(parts.part), units.targets(parts.part)
    why: dict[int, str] = {}
    for a, b in sorted(lost):
        if units.kinds[units.of[a]] is Kind.FIXED:
            reason = "each part makes its own of what is made of weights and constants alone"
        elif not sources[units.of[a]] or not targets[units.of[b]]:
            reason = "no gradient crosses there"
        else:
            reason = reasons.get((a, b), "both its sides are one part")
        why.setdefault(a, reason)
    kept = {a for a, _ in parts.cuts}
    return [f"cut after '{facts[a].name}' dropped: {reason}" for a, reason in why.items() if a not in kept]


def crossings(facts: Facts, units: Units, cuts: frozenset[Pair], flow: Flow) -> tuple[Crossing, ...]:
    """The values that a later part reads, in graph order. `gradient` is false if no reader sends a gradient back."""
    names = module_names(facts) if flow.consumers else {}
    taken: set[str] = set()
    asked_above, asked_below = _asked(units, cuts)
    result = []
    for value in sorted(flow.consumers):
        fact, meta = facts[value], facts[value].node.meta
        gradient, asked = False, asked_above[units.of[value]]
        for users in flow.consumers[value].values():
            for user in users:
                gradient |= fact.gradient and facts[user].gradient
                asked |= (value, user) in cuts or asked_below[units.of[user]]
        result.append(
            Crossing(
                name=unique_name(names.get(value, fact.name), taken),
                node=fact.name,
                producer=f"part_{flow.maker[value]}",
                consumers=tuple([f"part_{part}" for part in flow.consumers[value]]),
                shape=tuple(meta["shape"]) if "shape" in meta else None,
                dtype=str(meta["dtype"]).removeprefix("torch.") if "dtype" in meta else None,
                bytes=meta.get("bytes", 0),
                gradient=gradient,
                asked=asked,
            )
        )
    return tuple(result)


def around(crossings: Sequence[Crossing]) -> list[Note]:
    """A note on each value with a gradient that the user did not ask to cut."""
    return [
        Note(f"'{c.name}' goes around the cuts (used in {', '.join(c.consumers)}): cut too", AROUND, c.node)
        for c in crossings
        if c.gradient and not c.asked
    ]


def unique_name(name: str, taken: set[str]) -> str:
    """A name that differs from all others also where dots are not allowed, as in the names of modules."""
    count, unique = 1, name
    while unique.replace(".", "_") in taken:
        count += 1
        unique = f"{name}@{count}"
    taken.add(unique.replace(".", "_"))
    return unique


def _asked(units: Units, cuts: frozenset[Pair]) -> tuple[list[bool], list[bool]]:
    """For each unit whether a user's cut lies before it, and whether one lies behind it, with free units between."""
    cut = units.pairs(cuts)
    above, below = [False] * len(units.kinds), [False] * len(units.kinds)
    free = [u for u, kind in enumerate(units.kinds) if kind is Kind.FREE]
    for u in free:
        above[u] = any((i, u) in cut or above[i] for i in units.inputs[u])
    for u in reversed(free):
        below[u] = any((u, v) in cut or below[v] for v in units.users[u])
    return above, below


def module_names(facts: Facts) -> dict[int, str]:
    """The module call of each node that is the output of one, of the outermost call where there are several.

        layer2.0.conv  layer2.0.relu  layer2.1.conv  layer2.1.relu │ fc
                       "layer2.0"                    "layer2"

    A call's output is the last of its nodes whose value leaves it. The node of a leaf module that is no such output has
    the name of its own call, and a mark `dg.cut(x, name="mid")` the name that it was given. Further calls of a module
    are `layer2@2`, `layer2@3`, as in the user's cuts.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    stacks = [fact.node.meta.get("nn_module_stack") or {} for fact in facts]  # module calls, the outermost first
    for position in reversed(range(len(facts))):
        fact = facts[position]
        ended, innermost = [], str(fact.node.target)
        for call in stacks[position]:
            innermost = call or innermost
            leaves = fact.handed
            for user in fact.users:
                leaves |= call not in stacks[user]
            if call and call not in taken and leaves:
                ended.append(call)
        taken.update(ended)
        mark = mark_name(fact.node)
        if mark and mark not in taken:
            taken.add(mark)
            names[position] = mark
        elif ended:
            names[position] = ended[0]
        elif fact.node.op == "call_module":
            names[position] = innermost
    return names
