"""Record one real run of a model as an `fx.Graph`.

The model runs eagerly under a `TorchFunctionMode`. Each call of torch that makes or changes a tensor is written as a
node, and a whole leaf module (`nn.Linear`, `nn.LSTM`, ...) as one `call_module` on the user's own module, so that its
hooks, buffers and train mode stay alive. Python never sees a raw number that came out of a tensor: see `symbols`.

    model(x) ──runs──► torch calls ──TorchCalls──► nodes of the GraphWriter
                 ├───► modules, hooks, autograd functions ──ModuleCalls──► nodes
                 └───► what changed in the model ──SideEffects──► nodes, or a refusal

Why none of torch's own tracers:
`make_fx` records aten calls with the sizes of the example as constants, and leaves no module to call or to cut at.
`fx.Tracer` has no values, so that it ends at the first `if` or `range` that looks at a tensor or a size.
Dynamo compiles the code instead of running it, breaks graphs at what it does not know, and guards what no graph shows.
"""

import builtins
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ...graph.captured_graph import CapturedGraph
from ...graph.pytrees import HOLE, Tree, flatten, unflatten
from ...sandbox.snapshot import Snapshot
from .module_calls import ModuleCalls
from .side_effects import Attributes, SideEffects, refuse_changed_containers, written_inputs
from .symbols import is_live
from .torch_calls import TorchCalls
from .writer import GraphWriter

_patching = threading.RLock()  # the patches are global: one recording at a time


class Tracer:
    """Everything that listens to one run of `model`: `run`, then `finish`, then `writer.release`.

    Args:
        names: id -> path of every tensor that the model owns.
        hashable: sizes can serve as keys, and are guarded when they do.
        allowed, settled: as in `SideEffects`.
    """

    def __init__(
        self, model: nn.Module, names: dict[int, str], hashable: bool, allowed: Attributes | None, settled: bool
    ):
        self.model, self.writer = model, GraphWriter(names, hashable)
        self.side_effects = SideEffects(model, self.writer, allowed, settled)
        self._torch_calls = TorchCalls(self.writer)
        self._module_calls = ModuleCalls(self.writer, self.side_effects.paths)

    def run(self, leaves: list[Any], spec: pytree.TreeSpec, names: list[str]) -> Any:
        """Run the model on these inputs and write what it does. `names`: what the inputs are called."""
        args, kwargs = unflatten(leaves, spec)
        inputs = flatten((args, kwargs))
        self.writer.inputs(names, inputs[0])
        with self._attached():
            results = self.model(*args, **kwargs)
        refuse_changed_containers(inputs, flatten((args, kwargs)), names)
        return results

    def finish(self, results: Any, before: Snapshot, leaves: list[Any], inputs: list[Any]) -> CapturedGraph:
        """Write the side effects of the run, and close the graph.

        Args:
            before: the state of the model before the run.
            leaves, inputs: the inputs before the run, and those that it ran on.

        Raises:
            CaptureError: no graph can do what the run did.
        """
        self._torch_calls.finish()
        values, structure = flatten(results)
        nodes = self.writer.arguments([v for v in values if is_live(v)])
        self.side_effects.write(before.draws())
        self.writer.graph.output(tuple(nodes))

        constants, sets = self.writer.constants, frozenset(self.side_effects.sets)
        names = self.writer.names | {id(tensor): name for name, tensor in constants.items()}
        for b in self.model.buffers():
            names.pop(id(b), None)
        writes = tuple([names[id(t)] for t in before.written() if id(t) in names])
        tree = Tree(structure, tuple([HOLE if is_live(v) else v for v in values]))
        return CapturedGraph(self.writer.graph, "record", tree, constants, sets, writes, written_inputs(leaves, inputs))

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Send what this thread does through the tracer; other threads notice nothing."""
        # The stance first: it imports Dynamo, which remembers the builtins that it finds for the rest of the process.
        stance = torch.compiler.set_stance("force_eager")
        with _patching, stance, contextlib.ExitStack() as patches:
            patches.enter_context(_patched(nn.Module, "__call__", self._call))
            patches.enter_context(_patched(torch.autograd.Function, "apply", self._apply))
            patches.enter_context(_patched(builtins, "len", self._len))
            try:
                with self._torch_calls:
                    yield
            finally:
                self.writer.close()

    def _call(self, original: Any) -> Any:
        return lambda module, *args, **kwargs: self._module_calls.module(original, module, args, kwargs)

    def _apply(self, original: Any) -> Any:
        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            bound = original.__get__(None, cls)  # looked up now, `cls.apply` would be this patch
            return self._module_calls.function(bound, cls, args, kwargs)

        return classmethod(apply)

    def _len(self, original: Any) -> Any:
        def length(value: Any) -> Any:
            on_tensor = self.writer.listening and isinstance(value, torch.Tensor) and value.dim()
            return value.size(0) if on_tensor else original(value)

        return length


@contextlib.contextmanager
def _patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace `owner.name` by what `make` makes of it."""
    original = vars(owner)[name]
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
