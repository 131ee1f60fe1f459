"""Calls of modules, hooks, autograd functions, attributes set in a forward: what torch functions do not show."""

import contextlib
import functools
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from ...graph.nodes import Mode, keep, keep_buffer
from .symbols import unwrap
from .writer import Tape

CONTAINERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


class Calls:
    """Writes module calls of one run: torch's own layers whole, everything else by what happens inside."""

    def __init__(self, tape: Tape, model: nn.Module):
        self.tape = tape
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._counts: dict[str, int] = {}
        self._leaves: dict[int, bool] = {}
        self._kept: dict[tuple[int, str], nn.Module] = {}  # attributes that hold values of this run
        self.sets: set[tuple[int, str]] = set()  # those that held such values at any time
        self.touched: set[tuple[str, str]] = set()  # those that were set at all, by the module's path
        self.allowed: set[tuple[int, str]] | None = None  # the attributes that replays may set; all
        self.lasting: Container[int] = self._paths  # ids of the objects that were there before the run

    def module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What `module(...)` does while recording."""
        path = self._paths.get(id(module))
        if not self.tape.listening or path is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return original(module, *args, **kwargs)
        count = self._counts[path] = self._counts.get(path, 0) + 1
        self.tape.stack.append((path if count == 1 else f"{path}@{count}", path, type(module)))
        try:
            if path and self.is_leaf(module) and Mode.now() == self.tape.entry:
                return self._whole(original, module, path, args, kwargs)
            with self._hooks_written(module):
                return original(module, *args, **kwargs)
        finally:
            self.tape.stack.pop()

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is kept whole: torch's own layers, scripts, and what carries backward hooks."""
        if isinstance(module, torch.jit.ScriptModule):
            return True
        if module._backward_hooks or module._backward_pre_hooks:
            return True  # their state lives in one Python call: it cannot be replayed from outside
        if id(module) not in self._leaves:
            self._leaves[id(module)] = all(type(m).__module__.startswith("torch.nn") for m in module.modules())
        if not self._leaves[id(module)] or self._borrows(module):
            return False
        # The transformer layers take their fused inference kernel only where no mode listens: keep them whole then.
        whole = isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) and not (
            torch.is_grad_enabled() or module.training
        )
        return whole or not isinstance(module, CONTAINERS)

    def _borrows(self, module: nn.Module) -> bool:
        """Whether weights were put in place for this call, as `torch.func.functional_call` does."""
        held = [t for m in module.modules() for own in (m._parameters, m._buffers) for t in own.values()]
        return any(t is not None and id(t) not in self.tape.names for t in held)

    def _whole(self, original: Callable[..., Any], module: nn.Module, path: str, args: Any, kwargs: Any) -> Any:
        def write() -> fx.Node:
            tape = self.tape
            return tape.placed(tape.graph.call_module(path, tape.arguments(tuple(args)), tape.arguments(kwargs)))

        return self._opaque(functools.partial(original, module), args, kwargs, write)

    def _opaque(self, function: Callable[..., Any], args: Any, kwargs: Any, write: Callable[[], fx.Node]) -> Any:
        """Run something whose insides stay out of the graph, and bind what it returns."""
        node = write()
        with self.tape.aside():
            out = function(*unwrap(tuple(args)), **unwrap(kwargs))
        self.tape.bind(out, node)
        self.tape.pin(out, node)
        return out

    @contextlib.contextmanager
    def _hooks_written(self, module: nn.Module) -> Iterator[None]:
        """Let a module that is recorded from inside call its hooks through nodes, so that replays call them too."""
        kept = module._forward_pre_hooks.copy(), module._forward_hooks.copy()
        if not any(kept):
            yield
            return
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = functools.partial(self._hook, hook)
        try:
            yield
        finally:
            for hooks, held in zip((module._forward_pre_hooks, module._forward_hooks), kept, strict=True):
                hooks.update({key: hook for key, hook in held.items() if key in hooks})  # one may have removed itself

    def _hook(self, hook: Callable[..., Any], *args: Any) -> Any:
        def write() -> fx.Node:
            return self.tape.write(hook, args, {}, opaque=True)

        return self._opaque(hook, args, {}, write)

    def function(self, original: Callable[..., Any], cls: type, args: Any, kwargs: Any) -> Any:
        """What `Function.apply(...)` does while recording: one call, so that its own backward stays."""
        if not self.tape.listening:
            return original(*args, **kwargs)
        if issubclass(cls, CheckpointFunction) and _learns(args):
            return args[0](*args[2:])  # written by what happens inside: the same numbers, and its parameters are seen
        return self._opaque(original, args, kwargs, lambda: self.tape.write(original, args, kwargs, opaque=True))

    def attribute_left(self, module: nn.Module, name: str, value: Any) -> None:
        """For an attribute that holds something else after the run: replays set it too, if its value comes from it."""
        key = (id(module), name)
        self.touched.add((self._paths[id(module)], name))
        if (self.allowed is None or key in self.allowed) and self.tape.reaches(value):
            self._kept[key] = module
            self.sets.add(key)
            self._note(functools.partial(keep, module, name), f"keep_{name}", (value,))

    def buffer_registered(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        """For a buffer that the run made: replays make it too."""
        self.touched.add((self._paths[id(module)], name))
        persistent = name not in module._non_persistent_buffers_set
        self._note(functools.partial(keep_buffer, module, name, persistent), f"keep_{name}", (value,))

    def buffer_replaced(self, module: nn.Module, name: str, value: torch.Tensor) -> None:
        """For a buffer that the run put another in the place of: replays do so too."""
        self.touched.add((self._paths[id(module)], name))
        self._note(functools.partial(keep, module, name), f"keep_{name}", (value,))

    def _note(self, function: functools.partial[None], name: str, args: Any) -> None:
        function.__name__ = name  # type: ignore[attr-defined]  # the name of the node
        self.tape.write(function, args, {}, opaque=True)

    def is_kept(self, holder: Any, name: str) -> bool:
        """Whether replays set this attribute."""
        return (id(holder), name) in self._kept


def _learns(args: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
