"""A choice for models without example inputs: `torch.fx.symbolic_trace`, with module paths and flat inputs."""

from typing import Any

from torch import fx, nn

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.nodes import numbered
from ..graph.pytrees import HOLE, Tree, flatten


def trace(model: nn.Module) -> CapturedGraph:
    """The symbolic trace of a model in the mode it is in. Its placeholders are the model's arguments, whole.

    What a symbolic trace cannot see is lost without a word: autocast and `no_grad` regions, and optional arguments that
    the code tests. `check` finds most of it where example inputs are given.

    Raises:
        CaptureError: the code branches on a tensor or a size.
    """
    tracer, owned = fx.Tracer(), set(vars(model))
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise CaptureError([f"torch.fx.symbolic_trace: {error}"]) from error
    constants = {}
    for node in graph.nodes:
        stack = {}
        for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items():
            count = 0 if key == path else numbered(key)[1]  # fx counts further calls from 1, a reader from 2
            if path:
                stack[f"{path}@{count + 1}" if count else path] = (path, kind)
        node.meta["nn_module_stack"] = stack
        name = str(node.target)
        if node.op == "get_attr" and name in vars(model) and name not in owned:  # tracing hung it onto the model
            constants[name] = getattr(model, name)
            delattr(model, name)
    output = graph.output_node()
    leaves, spec = flatten(_plain(output.args[0]))
    output.args = (tuple(leaf for leaf in leaves if isinstance(leaf, fx.Node)),)
    holes = tuple(HOLE if isinstance(leaf, fx.Node) else leaf for leaf in leaves)
    return CapturedGraph(graph, "symbolic", Tree(spec, holes), constants)


def _plain(value: Any) -> Any:
    """A result in lists and dicts of Python: fx keeps them in classes of its own."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_plain, value))
    return value
