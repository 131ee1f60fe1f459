"""From one graph to a graph per part, and a top graph that runs them."""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..errors import PlanError, nearest
from ..plan.plan import Part, Plan

VALUE, PART, BOUNDARY = "value", "part", "boundary"  # in the meta of the top graph's nodes: what they stand for


@dataclass(frozen=True)
class Value:
    """A value of the graph, by the name of its node; to tell it from a constant that is a string."""

    name: str


@dataclass(frozen=True)
class Split:
    """The parts as graphs, in running order, and how they are joined."""

    graphs: dict[str, fx.Graph]
    outputs: tuple[Any, ...]  # of the model: a `Value`, or a constant as it is
    top: fx.Graph


def split(graph: fx.Graph, plan: Plan) -> Split:
    """One graph per part, and a top graph that calls them.

        graph    x ─► conv ─► relu ─► conv ─► add ─► output
                               └───────────────┘
        top      x ─► part_0 ───────► part_1 ───────► output
        part_0   x ─► conv ─► relu ─► output
        part_1   relu ─► conv ─► add ─► output
                  └───────────────┘

    A part takes the values that it reads and gives a tuple of those that it hands on, or the value itself if it is one.

    Requires:
        `plan` was made for `graph`, or for one with the same nodes.

    Guarantees:
        `graph` is unchanged.
        Running the parts in order is running the graph, bit for bit, random numbers and changed buffers included.
        Nodes keep their names and meta.
        In the top graph `meta["part"]` marks the call of a part and `meta["value"]` names the value that a node gives.

    Raises:
        PlanError: the plan names nodes that the graph lacks, or leaves nodes out.
    """
    node_called = {node.name: node for node in graph.nodes}
    if misfits := _misfits(graph, node_called, plan):
        raise PlanError(misfits)
    output = graph.output_node()
    results: Any = output.args[0]
    outputs = tuple(Value(given.name) if isinstance(given, fx.Node) else given for given in results)
    return Split(
        graphs={part.name: _part_graph(node_called, part) for part in plan.parts},
        outputs=outputs,
        top=_top_graph(node_called, plan, output),
    )


def _misfits(graph: fx.Graph, node_called: Mapping[str, fx.Node], plan: Plan) -> list[str]:
    placed = {name for part in plan.parts for name in part.nodes}
    unknown = sorted(placed - node_called.keys())
    needed = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    missing = [node.name for node in needed if node.name not in placed]
    inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
    misfits = [f"the graph has no node '{name}'{nearest(name, node_called)}" for name in unknown]
    misfits += [f"no part has the node '{name}'" for name in missing]
    if inputs != plan.inputs:
        misfits.append(f"the plan's inputs are {', '.join(plan.inputs)}, the graph's are {', '.join(inputs)}")
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


def _top_graph(node_called: Mapping[str, fx.Node], plan: Plan, output: fx.Node) -> fx.Graph:
    result = fx.Graph()
    made: dict[str, fx.Node] = {}
    for name in plan.inputs:
        made[name] = result.node_copy(node_called[name])
        made[name].meta[VALUE] = name
    for part in plan.parts:
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
