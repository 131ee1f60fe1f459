"""Write a graph that torch made in the language of captured graphs, node by node."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import fx

from ..errors import CaptureError
from ..graph.nodes import Call, Mode, numbered
from ..graph.own_names import generated

_INTO, _OUT_OF = "_increment_nesting", "_decrement_nesting"  # begin and end of what torch.func transforms
Rules = Mapping[Any, Callable[[Any, fx.Node], None]]  # op or target -> (rewriter, node)


class GraphRewriter(ABC):
    """A graph that is written after another one.

        theirs   x ─► set_grad(False) ─► linear ─► set_grad(True) ─► vmap begins ─► mul ─► vmap ends ─► ...
        ours     x ─► linear, without gradient ────────────────────► transform: vmap(mul) ────────────► ...

    A subclass has a table of `RULES`, by `op` or target, for nodes that have no place here as they are. All others are
    copied.

    Args:
        owner: the module that the other graph's targets belong to.
    """

    RULES: ClassVar[Rules] = {}

    def __init__(self, owner: Any):
        self.owner = owner
        self.graph = fx.Graph()
        self.made: dict[fx.Node, Any] = {}  # what stands for each of their nodes
        self.entry = self.mode = Mode.now()  # the mode outside the graph, and the one where the writing is

    @abstractmethod
    def locate(self, module: str, path: str, kind: type) -> tuple[str, type] | None:
        """The path and class in the model of what the other graph calls a module; `None`: it is no module of it."""

    def refusal(self, node: fx.Node) -> str | None:
        """Why a node cannot be copied, if so."""
        return None

    def name_of(self, node: fx.Node) -> str | None:
        """What the copy of a node is called; `None`: whatever fx calls it."""
        return node.name

    def write(self, nodes: Iterable[fx.Node]) -> None:
        """Write nodes of the other graph, in order."""
        for stretch in stretches(nodes):
            if len(stretch) > 1:
                self._transform(stretch)
            else:
                node = stretch[0]
                rule = self.RULES.get(node.op) or self.RULES.get(node.target) or type(self).copy
                rule(self, node)

    def mapped(self, value: Any) -> Any:
        """Arguments with our nodes in the place of theirs."""
        return fx.node.map_arg(value, self.made.__getitem__)

    def stands_for(self, old: fx.Node, new: fx.Node) -> None:
        """Let a node stand for one of theirs, in the same calls of modules."""
        stack = {}
        for key, (path, kind) in (old.meta.get("nn_module_stack") or {}).items():
            module, count = (key, 0) if key.endswith(path) else numbered(key)  # torch counts further calls from 1
            if (located := self.locate(module, path, kind)) is not None:
                stack[f"{located[0]}@{count + 1}" if count else located[0]] = located
        new.meta["nn_module_stack"] = stack
        self.made[old] = new

    def copy(self, node: fx.Node, function: Callable[..., Any] | None = None) -> None:
        """Copy a node, or call `function` in its place. Where a mode is set it becomes a call under this mode.

        Raises:
            CaptureError: a captured graph has no way to say this.
        """
        if (reason := self.refusal(node)) is not None:
            raise CaptureError([reason])
        target: Any = function or node.target
        args, kwargs = self.mapped(node.args), self.mapped(node.kwargs)
        if self.mode == self.entry or node.op in ("get_attr", "output"):
            new = self.graph.create_node(node.op, target, args, kwargs, self.name_of(node))
        elif node.op == "call_module":
            raise CaptureError([f"the module '{node.target}' runs in a region with a mode of its own"])
        else:
            called = getattr(torch.Tensor, target) if node.op == "call_method" else target
            new = self.graph.call_function(Call(called, self.mode, self.entry), args, kwargs)
        self.stands_for(node, new)

    def autocast(self, device: str, dtype: torch.dtype | None = None, enabled: bool = True, _: Any = None) -> Mode:
        """The mode that a region of autocast has inside the present one."""
        kind = (dtype or torch.get_autocast_dtype(device)) if enabled else torch.float32
        states = tuple((device, enabled, kind) if s[0] == device else s for s in self.mode.autocast)
        return replace(self.mode, autocast=states)

    def _transform(self, nodes: list[fx.Node]) -> None:
        """Write what a torch.func transform runs as one call: its nodes mean nothing outside of it."""
        function, inputs, outputs = as_function(self.owner, nodes)
        call = self.graph.call_function(Call(function, self.mode, self.entry), self.mapped(tuple(inputs)))
        self.stands_for(nodes[-1], call)
        for i, node in enumerate(outputs):
            self.stands_for(node, self.graph.call_function(operator.getitem, (call, i)))


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
    return generated(body, lambda path: attrgetter(path)(owner)).forward, inputs, outputs
