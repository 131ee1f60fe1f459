"""From one graph to a graph per part, and a top graph that runs them; boundaries go in between and out again."""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..errors import PlanError, nearest
from ..plan.partition import Partition
from ..plan.plan import Crossing, Part, Plan

VALUE, PART, BOUNDARY = "value", "part", "boundary"  # in the meta of the top graph's nodes: what they stand for
_PASSED_ON = ("shape", "dtype", "bytes", "gradient", "device")


@dataclass(frozen=True)
class Value:
    """A value of the graph, by the name of its node; to tell it from a constant that is a string."""

    name: str


@dataclass(frozen=True)
class Wiring:
    """What a part takes and gives, as names of the graph's nodes, in the order of its arguments and results."""

    part: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """The parts as graphs, in running order, and how they are joined."""

    graphs: dict[str, fx.Graph]
    wiring: tuple[Wiring, ...]
    outputs: tuple[Any, ...]  # of the model: a `Value`, or a constant as it is
    top: fx.Graph


def split(graph: fx.Graph, parts: Partition | Plan) -> Split:
    """One graph per part, and a top graph that calls them.

        graph    x ─► conv ─► relu ─► conv ─► add ─► output
                               └───────────────┘
        top      x ─► part_0 ───────► part_1 ───────► output
        part_0   x ─► conv ─► relu ─► output
        part_1   relu ─► conv ─► add ─► output
                  └───────────────┘

    A part takes the values that it reads and gives a tuple of those that it hands on, or the value itself if it is one.

    Requires:
        `parts` was made for `graph`, or for one with the same nodes.

    Guarantees:
        `graph` is unchanged.
        Running the parts in order is running the graph, bit for bit, random numbers and changed buffers included.
        Nodes keep their names and meta.
        In the top graph `meta["part"]` marks the call of a part and `meta["value"]` names the value that a node gives.

    Raises:
        PlanError: the parts name nodes that the graph lacks, or leave nodes out.
    """
    node_called = {node.name: node for node in graph.nodes}
    if misfits := _misfits(graph, node_called, parts):
        raise PlanError(misfits)
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    wiring = tuple(Wiring(part.name, part.inputs, part.outputs) for part in parts.parts)
    outputs = tuple(Value(given.name) if isinstance(given, fx.Node) else given for given in output.args[0])
    return Split(
        graphs={part.name: _part_graph(node_called, part) for part in parts.parts},
        wiring=wiring,
        outputs=outputs,
        top=_top_graph(node_called, parts, output),
    )


def _misfits(graph: fx.Graph, node_called: Mapping[str, fx.Node], parts: Partition | Plan) -> list[str]:
    placed = {name for part in parts.parts for name in part.nodes}
    unknown = sorted(placed - node_called.keys())
    needed = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    missing = [node.name for node in needed if node.name not in placed]
    inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
    misfits = [f"the graph has no node '{name}'{nearest(name, node_called)}" for name in unknown]
    misfits += [f"no part has the node '{name}'" for name in missing]
    if inputs != parts.inputs:
        misfits.append(f"the plan's inputs are {', '.join(parts.inputs)}, the graph's are {', '.join(inputs)}")
    return misfits


def _part_graph(node_called: Mapping[str, fx.Node], part: Part) -> fx.Graph:
    result = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for name in part.inputs:
        made[node_called[name]] = _placeholder(result, node_called[name])
    for name in part.nodes:
        made[node_called[name]] = result.node_copy(node_called[name], made.__getitem__)
    result.output(_one_or_tuple([made[node_called[name]] for name in part.outputs]))
    result.lint()
    return result


def _placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    made = graph.placeholder(node.name)
    made.meta = copy.copy(node.meta)
    return made


def _one_or_tuple(values: list[fx.Node]) -> fx.Node | tuple[fx.Node, ...]:
    return values[0] if len(values) == 1 else tuple(values)


def _top_graph(node_called: Mapping[str, fx.Node], parts: Partition | Plan, output: fx.Node) -> fx.Graph:
    result = fx.Graph()
    made: dict[str, fx.Node] = {}
    for name in parts.inputs:
        made[name] = result.node_copy(node_called[name])
        made[name].meta[VALUE] = name
    for part in parts.parts:
        call = result.call_module(part.name, tuple(made[name] for name in part.inputs))
        call.meta = {PART: part.name}
        made |= _results(result, call, [node_called[name] for name in part.outputs])
    copied = result.node_copy(output, lambda node: made[node.name])
    copied.meta = copy.copy(output.meta)
    result.lint()
    return result


def _results(graph: fx.Graph, call: fx.Node, values: list[fx.Node]) -> dict[str, fx.Node]:
    """The nodes that stand for the values that a part gives."""
    if len(values) == 1:
        call.meta = {**values[0].meta, **call.meta, VALUE: values[0].name}
        return {values[0].name: call}
    made = {}
    for at, value in enumerate(values):
        item = graph.create_node("call_function", operator.getitem, (call, at), name=value.name)
        item.meta = {**value.meta, VALUE: value.name}
        made[value.name] = item
    return made


def boundary_key(crossing: Crossing) -> str:
    """The name under which the boundary of a crossing is kept; unique in a plan, as the crossings' names are.

    `x.to(...)` makes a node called `to`, and no module may be called what modules can do.
    """
    name = crossing.name.replace(".", "_")
    return f"{name}@1" if hasattr(nn.ModuleDict, name) else name


def insert_boundaries(graph: fx.Graph, plan: Partition | Plan) -> fx.Graph:
    """Return a copy of a top graph in which every crossing with a gradient reaches its consumers through a boundary.

        before   x ─► part_0 ─► relu ─┬──────────────────────────► part_1 ─► part_2 ─► output
                                      └───────────────────────────────────────┘
        after    x ─► part_0 ─► relu ─► dni_relu ─┬► dni_relu_for_part_1 ─► part_1 ─► part_2 ─► output
                                                  └► dni_relu_for_part_2 ──────────────┘

    A boundary is the call of module `dni.<key>` on the value; for several consumers on the value and their number, and
    it gives one value for each, in running order. Values without gradient cross as they are, and an output of the model
    is read before the boundary.

    Requires:
        `graph` is the top graph of a `split` along `plan`, without boundaries.

    Guarantees:
        `graph` is unchanged.
        The consumers of crossings read a boundary, and nothing else changes: `strip_boundaries` gives the old graph
        back.

    Raises:
        PlanError: a crossing does not fit. All misfits are listed.
    """
    if misfits := _unfit(graph, plan):
        raise PlanError(misfits)
    result = copy.deepcopy(graph)
    value_called, part_called = _marked(result, VALUE), _marked(result, PART)
    for crossing in (crossing for crossing in plan.crossings if crossing.gradient):
        _insert(value_called[crossing.node], crossing, [part_called[name] for name in crossing.consumers])
    result.lint()
    return result


def strip_boundaries(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a top graph without its boundaries: `insert_boundaries` undone.

    Guarantees:
        `graph` is unchanged.
    """
    result = copy.deepcopy(graph)
    inserted = [node for node in result.nodes if BOUNDARY in node.meta]
    for node in reversed(inserted):  # what is taken out of a boundary first
        node.replace_all_uses_with(node.all_input_nodes[0], propagate_meta=False)
        result.erase_node(node)
    result.lint()
    return result


def _marked(graph: fx.Graph, what: str) -> dict[str, fx.Node]:
    return {node.meta[what]: node for node in graph.nodes if what in node.meta}


def _unfit(graph: fx.Graph, plan: Partition | Plan) -> list[str]:
    values, calls = _marked(graph, VALUE), _marked(graph, PART)
    misfits = [f"'{name}' is a boundary already" for name in _marked(graph, BOUNDARY)]
    for crossing in (crossing for crossing in plan.crossings if crossing.gradient):
        if crossing.node not in values:
            what = f"no part gives '{crossing.node}'{nearest(crossing.node, values)}"
            misfits.append(f"crossing '{crossing.name}': {what}")
            continue
        readers = set(values[crossing.node].users)
        deaf = [name for name in crossing.consumers if calls.get(name) not in readers]
        misfits += [f"crossing '{crossing.name}': {name} does not read '{crossing.node}'" for name in deaf]
    return misfits


def _insert(value: fx.Node, crossing: Crossing, consumers: Sequence[fx.Node]) -> None:
    args = (value,) if len(consumers) == 1 else (value, len(consumers))
    boundary = _after(value, value, f"dni_{crossing.node}", "call_module", f"dni.{boundary_key(crossing)}", args)
    boundary.meta[BOUNDARY] = crossing.name
    last = boundary
    for at, consumer in enumerate(consumers):
        if len(consumers) > 1:
            name = f"dni_{crossing.node}_for_{consumer.meta[PART]}"
            last = _after(last, value, name, "call_function", operator.getitem, (boundary, at))
            last.meta[BOUNDARY] = f"{crossing.name} for {consumer.meta[PART]}"
        consumer.replace_input_with(value, last)


def _after(place: fx.Node, value: fx.Node, name: str, op: str, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A new node behind another, with what is known of the value that passes through it."""
    with place.graph.inserting_after(place):
        node = place.graph.create_node(op, target, args, name=name)
    node.meta = {key: value.meta[key] for key in _PASSED_ON if key in value.meta}
    return node
