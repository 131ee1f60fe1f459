"""What torch.func transforms run (vmap, grad): stretches of a graph whose nodes mean nothing by themselves."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx

_INTO, _OUT_OF = "_increment_nesting", "_decrement_nesting"  # begin and end of what torch.func transforms


def stretches(nodes: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """The nodes one by one, but those of a torch.func transform together."""
    result: list[list[fx.Node]] = []
    depth = 0  # transforms run inside of others
    for node in nodes:
        name = getattr(node.target, "__name__", "")
        if depth == 0:
            result.append([])
        depth += name.endswith(_INTO)
        result[-1].append(node)
        depth -= name.endswith(_OUT_OF)
    return result


def as_function(owner: Any, nodes: list[fx.Node]) -> tuple[Callable[..., Any], list[fx.Node], list[fx.Node]]:
    """A stretch of a graph as one function, with the nodes whose values it takes, and those whose values it returns.

    Args:
        owner: the module that the graph's targets belong to.
    """
    inside = set(nodes)
    inputs = list(dict.fromkeys(a for n in nodes for a in n.all_input_nodes if a not in inside))
    outputs = [n for n in nodes if any(user not in inside for user in n.users)]
    body = fx.Graph()
    copies = {node: body.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = body.node_copy(node, copies.__getitem__)
    body.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(owner, body, "transform").forward, inputs, outputs
