"""Boundaries go into the graph that runs the parts, and out of it again."""

import copy
import operator
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ..errors import PlanError, nearest
from ..plan.plan import Crossing, Plan
from .split import BOUNDARY, PART, VALUE

_PASSED_ON = ("shape", "dtype", "bytes", "gradient", "device")  # meta that a boundary leaves as it is


def boundary_key(crossing: Crossing) -> str:
    """The name under which the boundary of a crossing is kept; unique in a plan, as the crossings' names are.

    `x.to(...)` makes a node called `to`, and no module may be called what modules can do.
    """
    return key_of(crossing.name)


def key_of(name: str) -> str:
    """The same by the crossing's name."""
    key = name.replace(".", "_")
    return f"{key}@1" if hasattr(nn.ModuleDict, key) else key


def insert_boundaries(graph: fx.Graph, plan: Plan) -> fx.Graph:
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
    values, calls = _marked(result, VALUE), _marked(result, PART)
    for crossing in plan.crossings:
        if crossing.gradient:
            _insert(values[crossing.node], crossing, list(map(calls.__getitem__, crossing.consumers)))
    result.lint()
    return result


def strip_boundaries(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a top graph without its boundaries: `insert_boundaries` undone.

    Guarantees:
        `graph` is unchanged.
    """
    result = copy.deepcopy(graph)
    inserted = [node for node in result.nodes if BOUNDARY in node.meta]
    for node in reversed(inserted):  # the items of a boundary before the boundary
        node.replace_all_uses_with(node.all_input_nodes[0], propagate_meta=False)
        result.erase_node(node)
    result.lint()
    return result


def _marked(graph: fx.Graph, key: str) -> dict[str, fx.Node]:
    """The nodes that carry this key in their meta, by what it says."""
    return {node.meta[key]: node for node in graph.nodes if key in node.meta}


def _unfit(graph: fx.Graph, plan: Plan) -> list[str]:
    values, calls = _marked(graph, VALUE), _marked(graph, PART)
    misfits = [f"'{name}' is a boundary already" for name in _marked(graph, BOUNDARY)]
    for crossing in plan.crossings:
        if crossing.gradient and crossing.node not in values:
            missing = f"no part gives '{crossing.node}'{nearest(crossing.node, values)}"
            misfits.append(f"crossing '{crossing.name}': {missing}")
        elif crossing.gradient:
            deaf = [name for name in crossing.consumers if calls.get(name) not in values[crossing.node].users]
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
    """A new node behind `place`, with the meta of the value that passes through it."""
    with place.graph.inserting_after(place):
        node = place.graph.create_node(op, target, args, name=name)
    node.meta = {key: value.meta[key] for key in _PASSED_ON if key in value.meta}
    return node
