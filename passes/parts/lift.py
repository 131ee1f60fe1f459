"""Parts that own nothing: the model's tensors come in as arguments."""

import copy
from collections.abc import Mapping

from torch import fx

from .split import PART


def lift(graphs: Mapping[str, fx.Graph], top: fx.Graph) -> tuple[dict[str, fx.Graph], fx.Graph]:
    """Return copies of the parts and of the graph that runs them, in which the model's tensors are arguments.

        before   x ─► part_0 ─► output         part_0   x, get_attr weight ─► linear ─► output
        after    x, weight ─► part_0 ─► output part_0   x, weight ─► linear ─► output

    Requires:
        `top` calls each part once; `meta["position"]` marks the tensors to lift, and the inputs.

    Guarantees:
        `graphs` and `top` are unchanged.
        Each tensor is one input of the new top graph, behind the inputs that it has, whatever parts use it.
    """
    top, lifted = copy.deepcopy(top), {name: copy.deepcopy(graph) for name, graph in graphs.items()}
    inputs: dict[int, fx.Node] = {}  # of the top graph, by the tensor's position
    for call in [node for node in top.nodes if PART in node.meta]:
        for node in _lift_part(lifted[call.meta[PART]]):
            position = node.meta["position"]
            if position not in inputs:
                inputs[position] = _input(top, node)
            call.args = (*call.args, inputs[position])
    top.lint()
    return lifted, top


def _lift_part(graph: fx.Graph) -> list[fx.Node]:
    """Turn the tensors of one part into its last inputs, and give these."""
    inputs = []
    for node in [node for node in graph.nodes if node.op == "get_attr" and "position" in node.meta]:
        inputs.append(_input(graph, node))
        node.replace_all_uses_with(inputs[-1])
        graph.erase_node(node)
    graph.lint()
    return inputs


def _input(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A further input behind those that the graph has."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        result = graph.placeholder(node.name)
    result.meta = copy.copy(node.meta)
    return result
