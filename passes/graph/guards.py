"""How far the guards of a graph can be trusted after they held once."""

import enum
import operator
from typing import Any

import torch
from torch import fx

from .nodes import Call, SizeCheck, guard


class Trust(enum.Enum):
    """When a graph that has run once may be run again without a way back."""

    ALWAYS = "it has no guards"
    SAME_SIZES = "its guards look at sizes: they hold whenever they held for inputs of these sizes"
    NEVER = "its guards look at data"


# Functions by their names: how large their results are depends on data; what they read is data, or as free as data.
DATA_SIZED = {
    "nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "bincount", "repeat_interleave", "one_hot",
}  # fmt: skip
DATA_READING = {"item", "tolist", "stride", "storage_offset"}  # how inputs lie in memory is as free as what they hold
SIZE_READING = (torch.Tensor.size, torch.Tensor.numel, torch.Tensor.dim, len)
KNOWN = {"torch", "_operator", "builtins", "math"}  # packages whose functions do what their names say
OWN = "dnigraph.passes"  # so do those of this library's that stand in graphs


def trust(graph: fx.Graph) -> Trust:
    """How far the guards of a graph can be trusted after they have held once.

    Requires:
        Nodes are in running order.
    """
    if not graph.find_nodes(op="call_function", target=guard):
        return Trust.ALWAYS
    doubtful: set[fx.Node] = set()  # numbers read from data, and tensors whose size depends on data
    for node in graph.nodes:
        if node.target is guard and _looks_at_data(node.args[0], doubtful):
            return Trust.NEVER
        if _reads_data(node) or not doubtful.isdisjoint(node.all_input_nodes):
            doubtful.add(node)
    return Trust.SAME_SIZES


def _looks_at_data(value: Any, doubtful: set[fx.Node]) -> bool:
    """Whether a guard on this value may miss for other inputs of the same sizes."""
    if not isinstance(value, fx.Node):
        return False
    if isinstance(value.target, Call) and isinstance(value.target.function, SizeCheck):
        return False
    is_number = "shape" not in value.meta and "flops" in value.meta
    # A truth value may come straight from a tensor: `bool(x.any())`, `torch.equal(a, b)`.
    tests_tensor = value.target not in SIZE_READING and any(
        "shape" in argument.meta for argument in value.all_input_nodes
    )
    return value in doubtful or not is_number or tests_tensor


def _reads_data(node: fx.Node) -> bool:
    """Whether a node's value is a number read from data, or its size depends on data."""
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    if name in DATA_READING | DATA_SIZED or (name == "where" and len(node.args) == 1) or _is_foreign(node):
        return True
    if (node.target is not operator.getitem and name != "index") or len(node.args) < 2:
        return False
    index = node.args[1] if isinstance(node.args[1], tuple | list) else (node.args[1],)
    return any(isinstance(i, fx.Node) and i.meta.get("dtype") in (torch.bool, torch.uint8) for i in index)  # a mask


def _is_foreign(node: fx.Node) -> bool:
    """A call whose insides nobody here knows: a script, a hook, an autograd function, an operator not of torch."""
    if node.op == "call_module":
        kinds = [kind for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
        return bool(kinds) and not kinds[-1].__module__.startswith("torch.nn")
    target: Any = node.target.function if isinstance(node.target, Call) else node.target
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return not str(target).startswith(("aten", "prim"))
    owner = getattr(target, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return True
    home = getattr(target, "__module__", None) or "torch"
    return node.op == "call_function" and home.partition(".")[0] not in KNOWN and not home.startswith(OWN)
