"""Record one real run of a model as an `fx.Graph`.

The model runs eagerly under a `TorchFunctionMode`. Each call of torch that makes or changes a tensor is written down as
a node, and a whole leaf module (`nn.Linear`, `nn.LSTM`, ...) as one `call_module` on the user's own module, so that its
hooks, buffers and train mode stay alive. Python never sees a raw number that came out of a tensor: see `symbols`.

    model(x) ──runs──► torch calls ──Listener──► nodes on the Tape
                 ├───► module calls, autograd functions, attributes ──Calls──► nodes
                 └───► what is left in the model ──Remains──► writes, or a refusal
"""

import builtins
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .module_calls import Calls
from .side_effects import Remains
from .torch_calls import Listener
from .writer import Tape

_patching = threading.RLock()  # the patches are global: one recording at a time


class Recorder:
    """Everything that listens to one run of `model`."""

    def __init__(self, model: nn.Module, names: dict[int, str], hashable: bool = False):
        self.tape = Tape(names, hashable)
        self.calls = Calls(self.tape, model)
        self.listener = Listener(self.tape)
        self.remains = Remains(model, self.tape, self.calls)

    def finish(self, outputs: list[Any], settled: bool) -> None:
        """Write what the run left behind and close the graph. In a settled model nothing else may have changed."""
        self.listener.finish()
        results = self.tape.arguments(list(outputs))
        self.remains.write_back()
        self.remains.write_attributes()
        if settled:
            self.remains.refuse_state()
        self.tape.graph.output(tuple(results))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Send what this thread does through the recorder; other threads notice nothing."""
        # The stance first: it imports Dynamo, which remembers the builtins that it finds for the rest of the process.
        stance = torch.compiler.set_stance("force_eager")
        with _patching, stance, contextlib.ExitStack() as patches:
            patches.enter_context(_patched(nn.Module, "__call__", self._call))
            patches.enter_context(_patched(torch.autograd.Function, "apply", self._apply))
            patches.enter_context(_patched(builtins, "len", self._len))
            try:
                with self.listener:
                    yield
            finally:
                self.tape.open = False

    def _here(self) -> bool:
        return threading.get_ident() == self.tape.thread

    def _call(self, original: Callable[..., Any]) -> Any:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if not self._here():
                return original(module, *args, **kwargs)
            return self.calls.module(original, module, args, kwargs)

        return call

    def _apply(self, original: Any) -> Any:
        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            bound = original.__get__(None, cls)  # looked up now, `cls.apply` would be this patch
            if not self._here():
                return bound(*args, **kwargs)
            return self.calls.function(bound, cls, args, kwargs)

        return classmethod(apply)

    def _len(self, original: Callable[..., int]) -> Any:
        def length(value: Any) -> int:
            if self._here() and self.tape.listening and isinstance(value, torch.Tensor) and value.dim():
                return value.size(0)
            return original(value)

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
