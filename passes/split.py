"""From one graph to a graph per part, and a top graph that runs them; boundaries go in between and out again."""

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from .errors import PlanError, nearest
from .partition import Partition
from .plan import Crossing, Part, Plan

VALUE, PART, BOUNDARY = "value", "part", "boundary"  # in the meta of the top graph's nodes: what they stand for


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
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    return [
        *(f"the graph has no node '{name}'{nearest(name, node_called)}" for name in unknown),
        *(f"no part has the node '{name}'" for name in missing),
        *([f"its inputs are {', '.join(parts.inputs)}, the graph's {', '.join(inputs)}"] if inputs != [*parts.inputs] else []),
    ]


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
    """The name under which the boundary of a crossing is kept; unique in a plan, as the crossings' names are."""
    return crossing.name.replace(".", "_")


def insert_boundaries(graph: fx.Graph, plan: Partition | Plan) -> fx.Graph:
    """Return a copy of a top graph in which every crossing with a gradient reaches its consumers through a boundary.

        before   part_0 ─► relu ─► part_1 ─► part_2 ─► output
                             └────────────────┘
        after    part_0 ─► relu ─► dni_relu ─┬► dni_relu_for_part_1 ─► part_1 ─► part_2 ─► output
                                             └► dni_relu_for_part_2 ────────────────┘

    A boundary is `call_module` of `dni.<key>` on the value; for several consumers on the value and their number, and
    gives one value for each, in running order. Values without gradient cross as they are, and a model's output is read
    before the boundary.

    Requires:
        `graph` is the top graph of a `split` along `plan`, without boundaries.

    Guarantees:
        `graph` is unchanged.
        Nothing but the consumers of crossings changes: `strip_boundaries` gives the old graph back.

    Raises:
        PlanError: a crossing does not fit. All misfits are listed.
    """
    crossings = [crossing for crossing in plan.crossings if crossing.gradient]
    if misfits := [line for crossing in crossings for line in _crossing_misfits(graph, crossing)]:
        raise PlanError(misfits)
    result = copy.deepcopy(graph)
    value_called, part_called = _by(result, VALUE), _by(result, PART)
    for crossing in crossings:
        _insert(result, value_called[crossing.node], crossing, [part_called[name] for name in crossing.consumers])
    result.lint()
    return result


def _by(graph: fx.Graph, what: str) -> dict[str, fx.Node]:
    return {node.meta[what]: node for node in graph.nodes if what in node.meta}


def _crossing_misfits(graph: fx.Graph, crossing: Crossing) -> list[str]:
    value, calls = _by(graph, VALUE).get(crossing.node), _by(graph, PART)
    if value is None:
        return [f"crossing '{crossing.name}': no part gives '{crossing.node}'{nearest(crossing.node, _by(graph, VALUE))}"]
    deaf = [name for name in crossing.consumers if name not in calls or value not in calls[name].all_input_nodes]
    return [f"crossing '{crossing.name}': {name} does not read '{crossing.node}'" for name in deaf]


def _insert(graph: fx.Graph, value: fx.Node, crossing: Crossing, consumers: list[fx.Node]) -> None:
    target = f"dni.{boundary_key(crossing)}"
    several = len(consumers) > 1
    with graph.inserting_after(value):
        args = (value, len(consumers)) if several else (value,)
        boundary = graph.create_node("call_module", target, args, name=f"dni_{crossing.node}")
    boundary.meta = {**_tensor_meta(value), BOUNDARY: crossing.name}
    last = boundary
    for at, consumer in enumerate(consumers):
        passed = boundary
        if several:
            with graph.inserting_after(last):
                name = f"dni_{crossing.node}_for_{consumer.meta[PART]}"
                passed = last = graph.create_node("call_function", operator.getitem, (boundary, at), name=name)
            passed.meta = {**_tensor_meta(value), BOUNDARY: crossing.name}
        consumer.replace_input_with(value, passed)


def _tensor_meta(value: fx.Node) -> dict[str, Any]:
    return {key: value.meta[key] for key in ("shape", "dtype", "bytes", "gradient", "device") if key in value.meta}


def strip_boundaries(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a top graph without its boundaries: `insert_boundaries` undone.

    Guarantees:
        `graph` is unchanged.
    """
    result = copy.deepcopy(graph)
    value_of: Callable[[fx.Node], fx.Node] = lambda node: value_of(node.args[0]) if BOUNDARY in node.meta else node  # type: ignore[arg-type]  # noqa: E731
    inserted = [node for node in result.nodes if BOUNDARY in node.meta]
    for node in inserted:
        node.replace_all_uses_with(value_of(node), propagate_meta=False, delete_user_cb=lambda user: BOUNDARY not in user.meta)
    for node in reversed(inserted):
        result.erase_node(node)
    result.lint()
    return result
