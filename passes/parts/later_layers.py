"""The layers of a captured graph behind one of its values, as graphs of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from ..graph.nodes import guard


@dataclass(frozen=True)
class Layer:
    """A stretch of a graph from one value to another one through which all goes that is computed behind the first."""

    graph: fx.Graph  # one placeholder, for the first value, and one result
    weights: tuple[str, ...]  # the targets of its modules and tensors
    takes: tuple[int, ...]  # the shape of the first value in the example
    gives: tuple[int, ...]  # and of the result
    writes: bool  # it may write to the first value in place
    last: bool  # its result is one of the graph's


def later_layers(graph: fx.Graph, value: fx.Node, is_weight: Callable[[str], bool]) -> tuple[Layer | None, list[Layer]]:
    """The layers behind a value, in order, and what comes before the first of them (None: nothing does).

        value ─► relu ─► conv ─► norm ─► relu ─► conv ─► + ─► pool ─► linear ─► output
                 before  [     layer                        ] [        ] [  last  ]

    A layer begins with a weight of two axes or more and ends where the next one begins. It is there only where a
    single value stands between the two, and where it reads nothing but that and the model's own tensors.

    Args:
        is_weight: whether a target is a tensor of two axes or more, or a module that has one.

    Requires:
        `graph` is annotated.

    Guarantees:
        `graph` is unchanged.
    """
    groups: list[list[tuple[fx.Node, fx.Node]]] = [[]]
    waists = _waists(graph, value)
    for stretch in zip([value, *waists], waists, strict=False):
        if any(is_weight(str(node.target)) for node in _inside(*stretch) if node.op in ("call_module", "get_attr")):
            groups.append([])
        groups[-1].append(stretch)
    made = [_layer(group[0][0], group[-1][1]) if group else None for group in groups]
    return made[0], [layer for layer in made[1:] if layer is not None]


def _waists(graph: fx.Graph, value: fx.Node) -> list[fx.Node]:
    """The values behind `value` through which all goes that is computed of it, in order."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    behind, live, waists = {value}, {value}, list[fx.Node]()
    until = {n: max((order[u] for u in n.users if u.op != "output"), default=-1) for n in graph.nodes}
    for node in graph.nodes:
        if order[node] <= order[value] or node.op == "output" or node.target is guard:
            continue
        if behind.isdisjoint(node.all_input_nodes):
            continue
        behind.add(node)
        live = {n for n in live if until[n] > order[node]} | {node}
        carries = node.meta.get("gradient") and "shape" in node.meta and not node.meta.get("container")
        if live == {node} and carries:
            waists.append(node)
    return waists


def _inside(first: fx.Node, last: fx.Node) -> Sequence[fx.Node]:
    """The nodes that `last` is computed with from `first`, in order, the inputs of the model among them."""
    found, stack = {last: None}, [last]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node is not first and node not in found:
                found[node] = None
                stack.append(node)
    return [node for node in last.graph.nodes if node in found]


def _layer(first: fx.Node, last: fx.Node) -> Layer | None:
    """The stretch as a graph of its own; None: it reads an input of the model."""
    nodes = _inside(first, last)
    if any(node.op == "placeholder" for node in nodes):
        return None
    graph = fx.Graph()
    copies = {first: graph.placeholder("value")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    graph.lint()
    return Layer(
        graph,
        tuple(dict.fromkeys(str(node.target) for node in nodes if node.op in ("call_module", "get_attr"))),
        tuple(first.meta["shape"]),
        tuple(last.meta["shape"]),
        writes=any(node.meta.get("writes") for node in nodes),
        last=any(user.op == "output" for user in last.users),
    )
