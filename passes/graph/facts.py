"""What is known of each node of an annotated graph, as plain values. Nodes are spoken of by their position."""

import operator
from dataclasses import dataclass

from torch import fx

from .nodes import set_attribute

SOURCES = {"placeholder": "input", "get_attr": "constant"}
PYTHON_VALUE = 8  # bytes of a size, a number or a flag, as traffic


@dataclass(frozen=True)
class Fact:
    """One node."""

    node: fx.Node
    name: str
    kind: str  # "input", "constant" (parameters and buffers too) or "computed"
    inputs: tuple[int, ...]
    users: tuple[int, ...]  # without the output node
    gradient: bool  # it carries a gradient
    random: bool
    effect: bool  # it is there for its side effect: no node reads its value
    handed: bool  # the output node reads it
    bundle: bool  # a tuple, list or dict of tensors
    bytes: int
    holds: frozenset[int]  # the storage of its value, if it has one
    writes: frozenset[int]  # the storages that it changes in place
    parameters: tuple[tuple[str, int, bool], ...]  # name, scalars, trained
    trained: bool  # one of these parameters is
    buffers: tuple[str, ...]  # that it may change


class Facts(tuple[Fact, ...]):
    """All nodes of a graph but its output, in graph order."""

    at: dict[fx.Node, int]  # the position of each node
    computed: tuple[int, ...]  # the positions of those that are neither inputs nor constants


def facts_of(graph: fx.Graph) -> Facts:
    """What the meta of an annotated graph says of its nodes. The graph is not changed."""
    nodes = [node for node in graph.nodes if node.op != "output"]
    at = dict(zip(nodes, range(len(nodes)), strict=True))
    bundles = _bundles(nodes)
    holds: dict[fx.Node, frozenset[int]] = {}
    facts, computed = [], []
    for node in nodes:
        storage = node.meta.get("storage")
        holds[node] = frozenset() if storage is None else frozenset((storage,))
        facts.append(_fact(node, at, node in bundles, holds))
        if facts[-1].kind == "computed":
            computed.append(at[node])
    result = Facts(facts)
    result.at, result.computed = at, tuple(computed)
    return result


def _fact(node: fx.Node, at: dict[fx.Node, int], bundle: bool, holds: dict[fx.Node, frozenset[int]]) -> Fact:
    meta, kind = node.meta, SOURCES.get(node.op, "computed")
    writes = frozenset(meta.get("writes", ()))
    if node.target is set_attribute and isinstance(node.args[0], fx.Node):
        writes |= holds[node.args[0]]  # `x.data = value` does not show in torch's version counters
    users, handed, trained = [], False, False
    for user in node.users:
        if user.op == "output":
            handed = True
        else:
            users.append(at[user])
    for _, _, learns in meta.get("parameters", ()):
        trained |= learns
    return Fact(
        node=node,
        name=node.name,
        kind=kind,
        inputs=tuple(map(at.__getitem__, node.all_input_nodes)),
        users=tuple(users),
        gradient=bool(meta.get("gradient")),
        random=bool(meta.get("random")),
        effect=kind == "computed" and not node.users,
        handed=handed,
        bundle=bundle,
        bytes=meta.get("bytes", PYTHON_VALUE),
        holds=holds[node],
        writes=writes,
        parameters=tuple(meta.get("parameters", ())),
        trained=trained,
        buffers=tuple(meta.get("buffers", ())) if node.op == "call_module" else (),
    )


def _bundles(nodes: list[fx.Node]) -> set[fx.Node]:
    """The nodes whose values hold tensors without being one. An item of a bundle is a tensor or a smaller bundle."""
    bundles: set[fx.Node] = set()
    candidates = [node for node in nodes if node.op not in SOURCES and "dtype" not in node.meta]
    for node in reversed(candidates):  # a bundle is known by its items, which come later
        items = (user for user in node.users if _is_item(user) and user.args[0] is node)
        if node.meta.get("container") or any("dtype" in item.meta or item in bundles for item in items):
            bundles.add(node)
    for node in candidates:  # and an item by its bundle
        if _is_item(node) and node.args[0] in bundles:
            bundles.add(node)
    return bundles


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (operator.getitem, getattr)


def batch_dim(shape: tuple[int, ...], batch: int, samples: int = 0) -> int | None:
    """The first dimension of the batch's size; `None`: there is none. A number has its batch in front.

    `samples`: how many tensors the call holds. Where they are the samples, of sizes that differ, what is padded to one
    tensor has that many rows.
    """
    if not shape:
        return 0
    if batch in shape:
        return shape.index(batch)
    return 0 if samples > 1 and shape[0] == samples else None
