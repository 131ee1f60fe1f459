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
    nodes: dict[str, fx.Node] = {}
    for node in graph.nodes:
        nodes[node.name] = node
    if misfits := _misfits(nodes, plan):
        raise PlanError(misfits)
    graphs = {}
    for part in plan.parts:
        graphs[part.name] = _part_graph(nodes, part)
    results: Any = graph.output_node().args[0]
    outputs = [Value(result.name) if isinstance(result, fx.Node) else result for result in results]
    return Split(graphs, tuple(outputs), _top_graph(nodes, plan, graph.output_node()))


def _misfits(nodes: Mapping[str, fx.Node], plan: Plan) -> list[str]:
    placed: set[str] = set()
    for part in plan.parts:
        placed.update(part.nodes)
    misfits = [f"the graph has no node '{name}'{nearest(name, nodes)}" for name in sorted(placed - nodes.keys())]
    inputs = []
    for name, node in nodes.items():
        if node.op == "placeholder":
            inputs.append(name)
        elif node.op not in ("output", "get_attr") and name not in placed:
            misfits.append(f"no part has the node '{name}'")
    if tuple(inputs) != plan.inputs:
        misfits.append(f"the plan's inputs are {', '.join(plan.inputs)}, the graph's are {', '.join(inputs)}")
    return misfits


def _part_graph(nodes: Mapping[str, fx.Node], part: Part) -> fx.Graph:
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for name in part.inputs:
        copies[nodes[name]] = result.placeholder(name)
        copies[nodes[name]].meta = copy.copy(nodes[name].meta)
    for name in part.nodes:
        copies[nodes[name]] = result.node_copy(nodes[name], copies.__getitem__)
    outputs = tuple([copies[nodes[name]] for name in part.outputs])
    result.output(outputs[0] if len(outputs) == 1 else outputs)
    result.lint()
    return result


def _top_graph(nodes: Mapping[str, fx.Node], plan: Plan, output: fx.Node) -> fx.Graph:
    result = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}  # the node of the top graph that stands for each value
    for name in plan.inputs:
        values[nodes[name]] = result.node_copy(nodes[name])
        values[nodes[name]].meta[VALUE] = name
    for part in plan.parts:
        call = result.call_module(part.name, tuple([values[nodes[name]] for name in part.inputs]))
        call.meta = {PART: part.name}
        for at, name in enumerate(part.outputs):
            item = call
            if len(part.outputs) > 1:
                item = result.create_node("call_function", operator.getitem, (call, at), name=name)
            item.meta = {**nodes[name].meta, **item.meta, VALUE: name}
            values[nodes[name]] = item
    result.node_copy(output, values.__getitem__).meta = copy.copy(output.meta)
    result.lint()
    return result
