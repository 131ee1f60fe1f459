"""What a node probably does, judged by its name alone: for graphs that were captured without an example.

Wrong guesses cost a cut that could have been made, or a boundary that is not needed; `check` finds the others.
"""

import operator
from typing import Any

from torch import fx

Meta = dict[str, Any]

_SIZES = {"size", "dim", "numel", "ndimension", "stride", "element_size", "is_floating_point", "get_device", "len"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
_NUMBERS = {"eq", "ne", "lt", "le", "gt", "ge", "not_", "is_", "is_not", "argmax", "argmin", "argsort", "long", "int"}
_VIEWS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "mT", "T"),
    *("swapaxes", "squeeze", "unsqueeze", "expand", "expand_as", "narrow", "select", "unfold", "diagonal"),
    *("detach", "contiguous", "chunk", "split", "unbind", "tensor_split", "movedim", "getitem", "getattr", "to"),
    *("real", "imag", "identity"),
}
_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "poisson", "exponential_", "uniform_", "rrelu")
_IN_PLACE = {f"i{name}" for name in "add and floordiv lshift matmul mod mul or pow rshift sub truediv".split()} | {
    *("setitem", "set_item", "set_attribute")
}
_BARE = {"activation", "dropout", "flatten", "fold", "loss", "padding", "pixelshuffle", "pooling", "upsampling"}
_YET_NOT_BARE = {"PReLU", "MultiheadAttention"}


def meta(nodes: list[fx.Node]) -> dict[fx.Node, Meta]:
    """For each node what `annotate` would have written, as far as names tell. Inputs are taken to need no gradient."""
    found: dict[fx.Node, Meta] = {}
    storages: dict[fx.Node, int] = {}
    plain: set[fx.Node] = set()
    for position, node in enumerate(nodes):
        source = node.op in ("placeholder", "get_attr")
        written = _written(node)
        root = written if written is not None else _base(node)
        storages[node] = storages.get(root, position) if root is not None else position
        if not source and _is_plain(node, plain):
            plain.add(node)
        found[node] = {
            "gradient": not source and node not in plain,
            "random": not source and _draws(_name(node)),
            "parameters": _parameters(node),
            **node.meta,
        }
        if node not in plain:
            found[node]["storage"] = storages[node]
            found[node]["writes"] = (storages[node],) if written is not None else ()
        if node not in plain and not _is_container(node):
            found[node]["dtype"] = None  # a tensor of some type
    return found


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return _module(node)[1].lower()
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", "").lower()


def _module(node: fx.Node) -> tuple[str, str]:
    """The file and the class of the module that is called."""
    stack = node.meta.get("nn_module_stack") or {}
    kind = list(stack.values())[-1][1] if stack else None
    return (kind.__module__.split(".")[-1], kind.__name__) if isinstance(kind, type) else ("", str(node.target))


def _parameters(node: fx.Node) -> tuple[tuple[str, int, bool], ...]:
    """A module has trained parameters unless its class is known to have none."""
    if node.op == "get_attr":
        return ((str(node.target), 0, True),)
    if node.op != "call_module":
        return ()
    file, kind = _module(node)
    bare = kind in ("Identity", "Dropout", "Flatten") or (file in _BARE and kind not in _YET_NOT_BARE)
    return () if bare else ((str(node.target), 0, True),)


def _is_plain(node: fx.Node, plain: set[fx.Node]) -> bool:
    """A size, a number, a flag, or made of such alone."""
    name = _name(node)
    if name == "getattr":
        return node.args[1] in _SIZE_ATTRIBUTES
    if name in _SIZES or name in _NUMBERS:
        return True
    return node.op != "call_module" and all(given in plain for given in node.all_input_nodes) and not _draws(name)


def _draws(name: str) -> bool:
    return any(word in name for word in _RANDOM)


def _is_container(node: fx.Node) -> bool:
    """Someone takes a numbered or named thing out of it."""
    taken = (user.args for user in node.users if user.target is operator.getitem)
    return any(args[0] is node and isinstance(args[1], int | str) for args in taken)


def _written(node: fx.Node) -> fx.Node | None:
    """What the node changes in place."""
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    if node.op == "call_module":
        return first if _is_in_place(node) else None
    name = _name(node)
    by_name = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
    return first if by_name or node.kwargs.get("inplace") is True else None


def _is_in_place(node: fx.Node) -> bool:
    """The module says so, where the graph knows it."""
    owner = node.graph.owning_module
    return owner is not None and getattr(owner.get_submodule(str(node.target)), "inplace", False) is True


def _base(node: fx.Node) -> fx.Node | None:
    """What the node's value may be a view of."""
    looks = _name(node) in _VIEWS or (node.op == "call_module" and _name(node) in ("flatten", "identity", "unflatten"))
    first = node.args[0] if node.args else None
    return first if looks and isinstance(first, fx.Node) else None
