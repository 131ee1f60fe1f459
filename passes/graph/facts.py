"""What the partition has to know of each node: read from its meta, or guessed where no example was run."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from . import guess
from .ops import set_attribute

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
    """What is known of the nodes of a graph. It is not changed.

    Without an example (no node says "gradient"), everything that is not plainly a size or a number carries a gradient,
    and what changes values in place is known by its name.
    """
    nodes = [node for node in graph.nodes if node.op != "output"]
    at = {node: position for position, node in enumerate(nodes)}
    meta = _completed(nodes)
    bundles = _bundles(nodes, meta)
    holds = {node: _storages(meta[node]) for node in nodes}
    facts = (_fact(node, at, meta[node], node in bundles, holds) for node in nodes)
    return Facts(tuple(facts), at)


def _completed(nodes: list[fx.Node]) -> dict[fx.Node, guess.Meta]:
    run = any("gradient" in node.meta for node in nodes)
    return {node: node.meta for node in nodes} if run else guess.meta(nodes)


def _fact(node: fx.Node, at: dict[fx.Node, int], meta: guess.Meta, bundle: bool, holds: Holds) -> Fact:
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


def _bundles(nodes: list[fx.Node], meta: dict[fx.Node, guess.Meta]) -> set[fx.Node]:
    """What holds tensors without being one. Taken out of a bundle is a tensor or a smaller bundle."""
    found: set[fx.Node] = set()
    may_be = [node for node in nodes if node.op not in SOURCES and "dtype" not in meta[node]]
    for node in reversed(may_be):
        taken = (user for user in node.users if unpacks(user) and user.args[0] is node)
        if meta[node].get("container") or any("dtype" in meta[user] or user in found for user in taken):
            found.add(node)
    for node in may_be:
        if unpacks(node) and node.args[0] in found:
            found.add(node)
    return found


def _storages(meta: guess.Meta) -> frozenset[int]:
    return frozenset() if meta.get("storage") is None else frozenset({meta["storage"]})


def batch_dim(shape: tuple[int, ...], batch: int) -> int | None:
    """The first dimension of the batch's size; `None`: there is none. A number has its batch in front."""
    if not shape:
        return 0
    return next((at for at, size in enumerate(shape) if size == batch), None)
