"""The last rung: no graph of the model, only of what its modules hand each other in one call. The model stays whole.

    model   h = f(self.a(x));  y = self.b(h) + h              what a is given: nothing that learns
    graph   a ─► b_in ─► b ─► result                          b_in: what enters b; b: what leaves it
            └─────────────────►┘                              the sum reads what left a, past b

Where a gradient flows is read from autograd, so what goes around a module is seen. It holds for the example call: the
next one may go another way, which is why such a model stands on this rung.
"""

import inspect
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CaptureError
from ..graph.mark import cut
from ..graph.nodes import NodeMeta, event
from ..graph.pytrees import flatten, unflatten
from ..sandbox.example import input_names
from ..sandbox.snapshot import fresh_copies, untouched
from .annotate import MAP_LAYERS, Counter, batch_lengths, channels_first, tensor_meta
from .module_hooks import Site, Watch

RUNG = "hooks"


@dataclass(frozen=True)
class _Passage:
    """A tensor that passed a site, and what had run since the one before."""

    site: Site
    value: Tensor  # marked
    mark: Any  # its node in autograd's graph: a write in place gives the tensor another
    stack: dict[str, tuple[str, type]]
    flops: int
    seconds: float


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
    """What the modules of one call hand each other, annotated as `annotate` does it.

    Guarantees:
        The model is left as it was, hooks included.
        A node is a tensor with a gradient that enters or leaves a module call, or passes a mark; `meta["site"]` says
        which. It reads those nodes from which autograd leads to it without another between, and its parameters are
        those that are met on the way.
        FLOPs and seconds are those of what ran since the node before.
    """
    leaves, spec = flatten((args, kwargs))
    with untouched(model, leaves), torch.enable_grad():
        run = _Run(model)
        results = run(*unflatten(fresh_copies(leaves), spec))
        if not results:
            words = "no result of this call carries a gradient: there is nothing to learn from"
            late = f"; a {run.late[0]} computes only when it is asked: return a list or a tensor" if run.late else ""
            raise CaptureError([words + late])
        graph = _Graph(model, run.passages, leaves).of(input_names(model, args, kwargs), results)
        graph.output_node().meta["passed_by"] = run.passed_by
        return graph


class _Mark(torch.autograd.Function):
    """The identity; autograd's graph has it as a node that knows the number of its passage."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, number: int) -> Tensor:
        ctx.number = number
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Run:
    """One call of the model in which each tensor that passes a site is marked."""

    def __init__(self, model: nn.Module):
        self.model, self.passages = model, list[_Passage]()
        self.stack: list[tuple[str, tuple[str, type]]] = []  # the calls that have begun and not ended
        self.counter = Counter()  # type: ignore[no-untyped-call]  # torch's

    def __call__(self, args: Any, kwargs: Any) -> list[Tensor]:
        """The results that carry a gradient."""
        self.since = (0, time.perf_counter())  # FLOPs and time at the last passage
        self.late: list[str] = []  # the kinds of results that compute only when they are asked
        watch = Watch(self.model, self._note, None, self._enter, self._leave)
        self.passed_by = watch.passed_by
        with watch.attached(), self.counter:
            leaves = flatten(self.model(*args, **kwargs))[0]
        self.late = sorted({type(v).__name__ for v in leaves if isinstance(v, Iterator) or inspect.isfunction(v)})
        return [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]

    def _enter(self, path: str, module: nn.Module, call: int) -> None:
        self.stack.append((Site(path, call, "enter").key, (path, type(module))))

    def _leave(self, path: str) -> None:
        self.left = dict(self.stack)
        while self.stack and self.stack.pop()[1][0] != path:
            pass  # calls that ended in an exception which the model caught

    def _note(self, site: Site, value: Tensor) -> Tensor:
        flops, seconds = self.counter.flops - self.since[0], time.perf_counter() - self.since[1]
        stack = self.left if site.side == "leave" else dict(self.stack)
        marked: Tensor = _Mark.apply(value, len(self.passages))  # type: ignore[no-untyped-call]  # torch's
        self.passages.append(_Passage(site, marked, marked.grad_fn, stack, flops, seconds))
        self.since = (self.counter.flops, time.perf_counter())
        return marked


class _Graph:
    """From the marks in autograd's graph to a graph of what passed."""

    def __init__(self, model: nn.Module, passages: list[_Passage], inputs: list[Any]):
        self.model, self.passages, self.inputs, self.batch = model, passages, inputs, batch_lengths(inputs)
        self.trained = {id(p): (name, p.numel(), True) for name, p in model.named_parameters() if p.requires_grad}
        self.graph = fx.Graph()
        self.placeholders: list[fx.Node] = []
        self.nodes: list[fx.Node] = []  # of the passages

    def of(self, names: list[str], results: list[Tensor]) -> fx.Graph:
        for name, value in zip(names, self.inputs, strict=True):
            if isinstance(value, Tensor):
                self.placeholders.append(self._noted(self.graph.placeholder(name), value))
        for passage in self.passages:
            functions = [function for function, _ in passage.mark.next_functions]
            node = self._node(_name(passage.site), passage.value, functions)
            if passage.site.side == "mark":
                node.target, node.kwargs = cut, {"name": passage.site.path}
            node.meta |= {"site": passage.site, "nn_module_stack": passage.stack}
            node.meta |= {"flops": passage.flops, "seconds": passage.seconds}
            beside = self.model.get_submodule(passage.site.path) if passage.site.side != "mark" else None
            maps = isinstance(beside, MAP_LAYERS)
            node.meta["channels_first"] = passage.value.dim() == 3 and channels_first(node, maps)
            self.nodes.append(node)
        marks = {id(passage.mark): node for passage, node in zip(self.passages, self.nodes, strict=True)}
        # A result that passed no site last is what the model makes of them by itself, at the end.
        ends = [marks.get(id(v.grad_fn)) or self._node("result", v, [v.grad_fn]) for v in results]
        self.graph.output(tuple(ends))
        return self.graph

    def _node(self, name: str, value: Tensor, functions: list[Any]) -> fx.Node:
        """The node of a value that autograd made by these functions."""
        numbers, parameters = _reached(functions)
        read = [self.nodes[number] for number in sorted(numbers)] or self.placeholders
        node = self._noted(self.graph.create_node("call_function", event, tuple(read), {}, name), value)
        node.meta["parameters"] = tuple(self.trained[i] for i in parameters if i in self.trained)
        return node

    def _noted(self, node: fx.Node, value: Tensor) -> fx.Node:
        node.meta |= NodeMeta(
            nn_module_stack={}, flops=0, seconds=0.0, parameters=(), buffers=(), random=False, writes=()
        )
        node.meta.update(tensor_meta(value, self.batch))
        return node


def _reached(functions: list[Any]) -> tuple[set[int], set[int]]:
    """The numbers of passages and ids of parameters from which autograd leads here, with no passage between."""
    numbers, parameters, seen = set[int](), set[int](), set[Any]()
    waiting = [f for f in functions if f is not None]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        if isinstance(getattr(function, "number", None), int) and type(function).__name__ == "_MarkBackward":
            numbers.add(function.number)
        elif hasattr(function, "variable"):
            parameters.add(id(function.variable))
        else:
            waiting += [f for f, _ in function.next_functions if f is not None]
    return numbers, parameters


def heard(values: Iterable[fx.Node], sites: set[fx.Node]) -> set[fx.Node]:
    """The nodes that a gradient of some values reaches without passing one of the sites."""
    nodes: set[fx.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop()
        if node not in nodes and node not in sites:
            nodes.add(node)
            waiting += node.all_input_nodes
    return nodes


def parameters(nodes: Iterable[fx.Node]) -> set[str]:
    """The names of the parameters that nodes work with."""
    return {name for node in nodes for name, _, _ in node.meta.get("parameters", ())}


def events(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that are sites."""
    return (node for node in graph.nodes if "site" in node.meta)


def _name(site: Site) -> str:
    name = site.key.replace(".", "_").replace("@", "_call")
    return {"enter": f"{name}_in", "leave": name, "mark": name}[site.side] + (f"_{site.leaf}" if site.leaf else "")
