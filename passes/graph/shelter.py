"""Names that a model may give its parts, and a generated module has already: `graph`, `code`, `meta`."""

import copy

from torch import fx, nn

SHELTER = "_sheltered"  # where the model's own things of such names stand in a generated module
_TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def sheltered(graph: fx.Graph) -> fx.Graph:
    """The graph, or a copy that looks one level deeper for what a `GraphModule` cannot hold under its own name."""
    if not any(_is_taken(node) for node in graph.nodes):
        return graph
    result = copy.deepcopy(graph)
    for node in result.nodes:
        if _is_taken(node):
            node.target = f"{SHELTER}.{node.target}"
    return result


def _is_taken(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr") and str(node.target).partition(".")[0] in _TAKEN
