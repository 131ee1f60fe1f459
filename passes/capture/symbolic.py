"""A choice for models without example inputs: `torch.fx.symbolic_trace`, with module paths and flat inputs."""

from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..graph.captured_graph import CapturedGraph
from ..graph.pytrees import HOLE, Tree


def trace(model: nn.Module) -> CapturedGraph:
    """The symbolic trace of a model in the mode it is in. Its placeholders are the model's arguments, whole.

    What a symbolic trace cannot see is lost without a word: autocast and `no_grad` regions, and optional arguments that
    the code tests. `check` finds most of it where example inputs are given.

    Raises:
        CaptureError: the code branches on a tensor or a size.
    """
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise CaptureError([f"torch.fx.symbolic_trace: {error}"]) from error
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {_key(key): found for key, found in stack.items() if found[0]}
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    leaves, spec = pytree.tree_flatten(_plain(output.args[0]))
    output.args = (tuple(leaf for leaf in leaves if isinstance(leaf, fx.Node)),)
    constants = tuple(HOLE if isinstance(leaf, fx.Node) else leaf for leaf in leaves)
    return CapturedGraph(graph, "symbolic", Tree(spec, constants), _own_constants(graph, model))


def _key(key: str) -> str:
    """fx counts the further calls of a module from 1, a reader from 2."""
    path, at, count = key.partition("@")
    return f"{path}@{int(count) + 1}" if at else path


def _plain(value: Any) -> Any:
    """fx keeps lists and dicts in classes of its own."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(*map(_plain, value)) if hasattr(value, "_fields") else _kind(value)(map(_plain, value))
    return value


def _kind(value: Any) -> type:
    return list if isinstance(value, list) else tuple


def _own_constants(graph: fx.Graph, model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that tracing made and hung onto the model; they move into the captured graph."""
    constants = {}
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            constants[str(node.target)] = getattr(model, str(node.target))
            delattr(model, str(node.target))
    return constants
