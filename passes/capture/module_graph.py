"""The last rung: no graph of the model, only of what its modules hand each other in one call. The model stays whole.

    model   h = f(self.a(x));  y = self.b(h) + h              what a is given: nothing that learns
    graph   a ─► b_in ─► b ─► result                          b_in: what enters b; b: what leaves it
            └─────────────────►┘                              the sum reads what left a, past b

Where a gradient flows is read from autograd, so what goes around a module is seen. It holds for the example call: the
next one may go another way, which is why such a model stands on this rung.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CaptureError
from ..graph.facts import batch_dim
from ..graph.mark import cut as marker
from ..graph.pytrees import flatten, unflatten
from ..sandbox.example import input_names
from ..sandbox.snapshot import fresh_copies, untouched
from .annotate import Counter, makes_lines
from .module_hooks import Site, Watch

RUNG = "hooks"


def event(*read: Any) -> None:
    """Stands in the graph for a tensor at the border of a module call. It is not run."""
    raise CaptureError(["the graph of the hooks rung only says what feeds what; it cannot be run"])


@dataclass
class _Event:
    site: Site
    value: Tensor  # marked
    mark: Any  # its node in autograd's graph: a write in place gives the tensor another
    stack: dict[str, tuple[str, type]]
    flops: int
    seconds: float


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
    """What the modules of one call hand each other, with the notes on each node that `annotate` makes.

    Guarantees:
        The model is left as it was, hooks included.
        A node is a tensor with a gradient that enters or leaves a module call, or passes a mark; `meta["site"]` says
        which. It reads those nodes from which autograd leads to it without another between, and its parameters are
        those that are met on the way.
        FLOPs and seconds are those of what ran since the node before.
    """
    with untouched(model), torch.enable_grad():
        run = _Run(model)
        results = run(args, kwargs)
        batch = next((v.shape[0] for v in flatten((args, kwargs))[0] if isinstance(v, Tensor) and v.dim()), 1)
        return _Graph(model, run, batch).of(input_names(model, args, kwargs), flatten((args, kwargs))[0], results)


class _Mark(torch.autograd.Function):
    """The identity; autograd's graph has it as a node that knows its event."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, number: int) -> Tensor:
        ctx.number = number
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


@dataclass
class _Run:
    """One call of the model with a mark on everything."""

    model: nn.Module
    events: list[_Event] = field(default_factory=list)
    stack: list[tuple[str, tuple[str, type]]] = field(default_factory=list)

    def __call__(self, args: Any, kwargs: Any) -> list[Tensor]:
        """The results that carry a gradient."""
        leaves, spec = flatten((args, kwargs))
        args, kwargs = unflatten(fresh_copies(leaves), spec)
        self.counted = Counter()  # type: ignore[no-untyped-call]  # torch's
        self.since = (0, time.perf_counter())
        with Watch(self.model, self._note, None, self._enter, self._leave).attached(), self.counted:
            found = flatten(self.model(*args, **kwargs))[0]
        return [v for v in found if isinstance(v, Tensor) and v.requires_grad]

    def _enter(self, path: str, module: nn.Module, call: int) -> None:
        self.stack.append((Site(path, call, "enter").key, (path, type(module))))

    def _leave(self, path: str) -> None:
        self.left = dict(self.stack)
        while self.stack and self.stack.pop()[1][0] != path:
            pass  # calls that ended in an exception which the model caught

    def _note(self, site: Site, value: Tensor) -> Tensor:
        now = (self.counted.flops, time.perf_counter())
        stack = self.left if site.side == "leave" else dict(self.stack)
        marked: Tensor = _Mark.apply(value, len(self.events))  # type: ignore[no-untyped-call]  # torch's
        self.events.append(_Event(site, marked, marked.grad_fn, stack, now[0] - self.since[0], now[1] - self.since[1]))
        self.since = (self.counted.flops, time.perf_counter())
        return marked


class _Graph:
    """From the marks in autograd's graph to a graph of events."""

    def __init__(self, model: nn.Module, run: _Run, batch: int):
        self.model, self.run, self.batch = model, run, batch
        self.trained = {id(p): (name, p.numel(), True) for name, p in model.named_parameters() if p.requires_grad}
        self.graph = fx.Graph()
        self.nodes: list[fx.Node] = []

    def of(self, names: list[str], inputs: list[Any], results: list[Tensor]) -> fx.Graph:
        given = [self._input(n, v) for n, v in zip(names, inputs, strict=True) if isinstance(v, Tensor)]
        for happened in self.run.events:
            node = self._node(_name(happened.site), [f for f, _ in happened.mark.next_functions], given)
            if happened.site.side == "mark":
                node.target, node.kwargs = marker, {"name": happened.site.path}
            node.meta |= self._facts(happened.value) | {"site": happened.site, "nn_module_stack": happened.stack}
            node.meta |= {"flops": happened.flops, "seconds": happened.seconds, "line": self._is_line(node)}
            self.nodes.append(node)
        if not results:
            raise CaptureError(["no result of this call carries a gradient: there is nothing to learn from"])
        marks = {id(happened.mark): node for happened, node in zip(self.run.events, self.nodes, strict=True)}
        ends = [marks.get(id(v.grad_fn)) or self._result(v, given) for v in results]
        self.graph.output(tuple(ends))
        return self.graph

    def _result(self, value: Tensor, given: list[fx.Node]) -> fx.Node:
        """What the model makes of events by itself, at the end."""
        node = self._node("result", [value.grad_fn], given)
        node.meta |= self._facts(value) | {"nn_module_stack": {}, "flops": 0, "seconds": 0.0}
        return node

    def _input(self, name: str, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(name)
        node.meta |= self._facts(value) | {"flops": 0, "parameters": (), "buffers": (), "random": False, "writes": ()}
        return node

    def _node(self, name: str, functions: list[Any], given: list[fx.Node]) -> fx.Node:
        events, parameters = _reached(functions)
        read = [self.nodes[number] for number in sorted(events)] or given
        node = self.graph.create_node("call_function", event, tuple(read), {}, name)
        trained = tuple(self.trained[i] for i in parameters if i in self.trained)
        node.meta |= {"parameters": trained, "buffers": (), "random": False, "writes": ()}
        return node

    def _is_line(self, node: fx.Node) -> bool:
        """Whether the value is a map along a line: it enters or leaves a layer on maps, or comes from one."""
        site, shape = node.meta["site"], node.meta["shape"]
        if len(shape) != 3:
            return False
        beside = self.model.get_submodule(site.path) if site.side != "mark" else None
        alike = (n for n in node.all_input_nodes if n.meta.get("shape") == shape)
        return makes_lines(beside) or any(n.meta.get("line", False) for n in alike)

    def _facts(self, value: Tensor) -> dict[str, Any]:
        return {
            "shape": tuple(value.shape),
            "dtype": value.dtype,
            "bytes": value.numel() * value.element_size(),
            "gradient": value.requires_grad,
            "device": value.device,
            "batch_dim": batch_dim(tuple(value.shape), self.batch),
        }


def _reached(functions: list[Any]) -> tuple[set[int], set[int]]:
    """The events and the parameters (by id) from which autograd leads here, with no event between."""
    events, parameters, seen = set[int](), set[int](), set[Any]()
    waiting = [f for f in functions if f is not None]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        if isinstance(getattr(function, "number", None), int) and type(function).__name__ == "_MarkBackward":
            events.add(function.number)
        elif hasattr(function, "variable"):
            parameters.add(id(function.variable))
        else:
            waiting += [f for f, _ in function.next_functions if f is not None]
    return events, parameters


def heard(values: Iterable[fx.Node], sites: set[fx.Node]) -> set[fx.Node]:
    """The nodes that a gradient of some values reaches without passing one of the sites."""
    found: set[fx.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in sites:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def parameters(nodes: Iterable[fx.Node]) -> set[str]:
    """The names of the parameters that nodes work with."""
    return {name for node in nodes for name, _, _ in node.meta.get("parameters", ())}


def events(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that are sites."""
    return (node for node in graph.nodes if "site" in node.meta)


def _name(site: Site) -> str:
    name = site.key.replace(".", "_").replace("@", "_call")
    return {"enter": f"{name}_in", "leave": name, "mark": name}[site.side] + (f"_{site.leaf}" if site.leaf else "")
