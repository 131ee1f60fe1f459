"""What the partition has to know of each node, read from its meta."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from .nodes import set_attribute

SOURCES = {"placeholder": "input", "get_attr": "constant"}
Holds = dict[fx.Node, frozenset[int]]
PYTHON_VALUE = 8  # bytes of a size, a number or a flag, as traffic


@dataclass(frozen=True)
class Fact:
    """One node. Nodes are spoken of by their position in the graph."""

    node: fx.Node
    kind: str  # "input", "constant" (parameters and buffers too) or "computed"
    inputs: tuple[int, ...]
    users: tuple[int, ...]  # without the output node
    gradient: bool  # it carries a gradient
    random: bool
    effect: bool  # it is there for what it does: nobody reads its value
    handed: bool  # the output node reads it
    bundle: bool  # a tuple, list or dict of tensors
    bytes: int
    holds: frozenset[int]  # the storage of its value, if it has one
    writes: frozenset[int]  # the storages that it changes in place
    parameters: tuple[tuple[str, int, bool], ...]  # name, scalars, trained
    buffers: tuple[str, ...]  # that it may change

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def trained(self) -> bool:
        """A parameter of its own learns."""
        return any(trained for _, _, trained in self.parameters)


@dataclass(frozen=True)
class Facts:
    """All nodes of a graph but its output, in graph order."""

    all: tuple[Fact, ...]
    at: dict[fx.Node, int]

    def __getitem__(self, position: int) -> Fact:
        return self.all[position]

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.all)

    def computed(self) -> Iterator[int]:
        """The positions of what is neither input nor constant."""
        return (p for p, fact in enumerate(self.all) if fact.kind == "computed")


def read(graph: fx.Graph) -> Facts:
    """What is known of the nodes of an annotated graph. It is not changed."""
    nodes = [node for node in graph.nodes if node.op != "output"]
    at = {node: position for position, node in enumerate(nodes)}
    bundles = _bundles(nodes)
    holds = {node: _storages(node) for node in nodes}
    facts = (_fact(node, at, node in bundles, holds) for node in nodes)
    return Facts(tuple(facts), at)


def _fact(node: fx.Node, at: dict[fx.Node, int], bundle: bool, holds: Holds) -> Fact:
    meta = node.meta
    kind = SOURCES.get(node.op, "computed")
    return Fact(
        node=node,
        kind=kind,
        inputs=tuple(at[given] for given in node.all_input_nodes),
        users=tuple(at[user] for user in node.users if user in at),
        gradient=bool(meta.get("gradient")),
        random=bool(meta.get("random")),
        effect=kind == "computed" and not node.users,
        handed=any(user.op == "output" for user in node.users),
        bundle=bundle,
        bytes=meta.get("bytes", PYTHON_VALUE),
        holds=holds[node],
        writes=frozenset(meta.get("writes", ())) | _assigns(node, holds),
        parameters=tuple(meta.get("parameters", ())),
        buffers=tuple(meta.get("buffers", ())) if node.op == "call_module" else (),
    )


def _assigns(node: fx.Node, holds: Holds) -> frozenset[int]:
    """What `x.data = v` writes: torch's version counters do not show it."""
    target = node.args[0] if node.target is set_attribute else None
    return holds[target] if isinstance(target, fx.Node) else frozenset()


def unpacks(node: fx.Node) -> bool:
    """It takes one thing out of another."""
    return node.op == "call_function" and node.target in (operator.getitem, getattr)


def _bundles(nodes: list[fx.Node]) -> set[fx.Node]:
    """What holds tensors without being one. Taken out of a bundle is a tensor or a smaller bundle."""
    found: set[fx.Node] = set()
    may_be = [node for node in nodes if node.op not in SOURCES and "dtype" not in node.meta]
    for node in reversed(may_be):
        taken = (user for user in node.users if unpacks(user) and user.args[0] is node)
        if node.meta.get("container") or any("dtype" in user.meta or user in found for user in taken):
            found.add(node)
    for node in may_be:
        if unpacks(node) and node.args[0] in found:
            found.add(node)
    return found


def _storages(node: fx.Node) -> frozenset[int]:
    storage = node.meta.get("storage")
    return frozenset() if storage is None else frozenset({storage})


def batch_dim(shape: tuple[int, ...], batch: int) -> int | None:
    """The first dimension of the batch's size; `None`: there is none. A number has its batch in front."""
    if not shape:
        return 0
    return next((at for at, size in enumerate(shape) if size == batch), None)
