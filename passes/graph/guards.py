"""How far the guards of a graph can be trusted after they held once."""

import enum
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
    "_unique", "_unique2", "unique_dim", "combinations", "histogramdd", "segment_reduce",
    "pack_padded_sequence", "_pack_padded_sequence", "pad_packed_sequence", "_pad_packed_sequence",
    "to_sparse", "to_sparse_coo", "to_sparse_csr", "to_sparse_csc", "to_sparse_bsr", "to_sparse_bsc", "coalesce",
    "indices", "_indices", "values", "_values", "crow_indices", "col_indices", "ccol_indices", "row_indices",
}  # fmt: skip
# They take sizes as arguments: where a tensor is one, its data decides how large the result is.
SIZE_TAKING = {
    "arange", "range", "linspace", "logspace", "zeros", "ones", "full", "empty", "rand", "randn", "randint",
    "randperm", "eye", "tril_indices", "triu_indices", "new_zeros", "new_ones", "new_full", "new_empty",
    "tensor_split", "hsplit", "vsplit", "dsplit", "split", "chunk", "narrow", "narrow_copy", "expand",
    "broadcast_to", "view", "reshape", "repeat", "tile", "unflatten", "unfold", "resize_", "as_strided", "pad",
    "interpolate", "getitem", "select", "sparse_coo_tensor", "hamming_window", "hann_window", "blackman_window",
    "bartlett_window", "kaiser_window", "affine_grid", "topk",
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
    if name in SIZE_TAKING | {"index"} and any(map(_is_size, node.args[1:])):
        return True
    return name in SIZE_TAKING and any(map(_is_size, (*node.args[:1], *node.kwargs.values())))


def _is_size(value: Any) -> bool:
    """Whether an argument is, or holds, a tensor that can decide a size: a single number, a mask, a slice's end."""
    if isinstance(value, fx.Node):
        return value.meta.get("shape") == () or value.meta.get("dtype") in (torch.bool, torch.uint8)
    if isinstance(value, slice):
        return any(map(_is_size, (value.start, value.stop, value.step)))
    return isinstance(value, tuple | list) and any(map(_is_size, value))


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
