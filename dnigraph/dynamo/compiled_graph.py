"""One graph of Dynamo's: cut for each instance that it runs for, with boundaries between its parts."""

import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn

from ..passes.capture.dynamo_graph import annotate_without_data, to_captured_graph
from ..passes.cuts.specs import cut_graph
from ..passes.errors import CaptureError
from ..passes.graph.own_names import GraphModule, generated
from ..passes.parts.boundary_nodes import insert_boundaries
from ..passes.parts.lift import lift
from ..passes.parts.split import split
from .frames import place
from .interfaces import Interfaces, Spot
from .naming import Naming

FindInterfaces = Callable[[set[int]], tuple[nn.Module, Interfaces] | None]  # of the ids of a call's tensors
Compiler = str | Callable[..., Any]
STEPS = 3  # runs of a model's first graph after which all graphs of its step have been captured


class Captured:
    """What the backend gives Dynamo for a graph: called with the graph's inputs, it returns the graph's outputs.

    The graph is cut when it first runs for an instance of its module: only then is it known whose tensors come in. A
    mistake in the cuts is raised there. Without gradient it runs uncut.

    Args:
        find: the model whose tensors come in, and its boundaries; None: the graph of a model without cuts.
        compiler: what compiles each part.
    """

    def __init__(self, find: FindInterfaces, compiler: Compiler, module: fx.GraphModule, examples: Sequence[Any]):
        self._find, self._compiler, self.module = find, compiler, module
        self._naming = Naming(module.graph, examples)
        self._runs: dict[tuple[int, ...], Run] = {}
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The graph's outputs."""
        if not torch.is_grad_enabled():
            return self.module.forward(*args)
        key = tuple([id(args[i]) for i in self._naming.held])
        run = self._runs.get(key)
        if run is None or not run.is_for(args):
            with self._lock:
                run = self._runs[key] = self._bind(args)
        return run(args)

    def _bind(self, args: Sequence[Any]) -> "Run":
        """Cut the graph for the instance whose tensors are among `args`."""
        self._runs = {key: run for key, run in self._runs.items() if run.lives()}
        witness = next((args[i] for i in self._naming.held), None)
        owner = self._find({id(args[i]) for i in self._naming.held})
        if owner is None:
            return Run(self.module.forward, range(len(args)), None, witness)
        model, interfaces = owner
        where = place()
        try:
            return self._cut(model, interfaces, where, args, witness)
        except CaptureError as error:
            interfaces.stay_whole(where, "; ".join(error.reasons))
            return Run(self.module.forward, range(len(args)), None, witness)

    def _cut(self, model: nn.Module, interfaces: Interfaces, where: str, args: Sequence[Any], witness: Any) -> "Run":
        instance = self._naming.instance(model, args)
        captured = to_captured_graph(self.module, instance.tensors, instance.paths)
        annotate_without_data(captured, self.module, args)
        graph = captured.graph
        spot = Spot(where, next((instance.tensors[i] for i in self._naming.held), ""))
        plan, resolved = cut_graph(graph, interfaces.cuts(spot), model, captured.rung, strict=False)
        interfaces.learn(spot, resolved)
        places = {
            str(node.target): node.meta["position"]
            for node in graph.find_nodes(op="get_attr")
            if "position" in node.meta
        }

        def find(target: str) -> tuple[nn.Module | None, Any]:
            if target not in places:
                return None, attrgetter(target)(self.module)
            path = instance.tensors[places[target]].rpartition(".")[0]
            return dict(model.named_modules()).get(path), args[places[target]]

        plan, boundaries = interfaces.stand(spot, plan, graph, find)
        pieces = split(graph, plan)
        graphs, top = lift(pieces.graphs, insert_boundaries(pieces.top, plan))
        whole = GraphModule(top, "Cut")
        whole._modules["dni"] = boundaries
        for name, part in graphs.items():
            whole._modules[name] = module = generated(part, lambda path: attrgetter(path)(self.module), name)
            if self._compiler != "eager":
                module.compile(backend=self._compiler)
        order = [node.meta["position"] for node in top.nodes if node.op == "placeholder"]
        return Run(whole.forward, order, interfaces, witness)


class Run:
    """A graph, ready to run for one instance.

    Args:
        order: the positions of the arguments that `function` takes.
        interfaces: those of the model; None: the graph runs uncut.
        witness: a tensor of the instance. Runs are found by the ids of tensors, and an id may be used again: the
            witness tells whether they still belong to the instance.
    """

    def __init__(self, function: Callable[..., Any], order: Sequence[int], interfaces: Interfaces | None, witness: Any):
        self.function, self.order, self.interfaces = function, order, interfaces
        self._witness = (lambda: None) if witness is None else weakref.ref(witness)
        self._id = None if witness is None else id(witness)
        self._steps = 0

    def __call__(self, args: Sequence[Any]) -> Any:
        """The outputs of the graph for all its inputs."""
        given = [args[i] for i in self.order]
        if self.interfaces is None:
            return self.function(*given)
        self.interfaces.follow()
        self._count(self.interfaces)
        return self.interfaces.showing(self.function, given) if self.interfaces.looks_around else self.function(*given)

    def lives(self) -> bool:
        """Whether the instance is still there."""
        return self._id is None or self._witness() is not None

    def is_for(self, args: Sequence[Any]) -> bool:
        """Whether `args` are the tensors of the instance, whose ids they have."""
        if self._id is None:
            return True
        witness = self._witness()
        return witness is not None and any(arg is witness for arg in args)

    def _count(self, interfaces: Interfaces) -> None:
        if self._steps < STEPS:
            self._steps += 1
            if self._steps == STEPS:
                interfaces.look_back()
