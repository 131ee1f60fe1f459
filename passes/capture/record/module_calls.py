"""Calls of modules, hooks and autograd functions: each becomes one node, or is recorded from inside."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import CheckpointFunction

from ...graph.nodes import Mode
from .symbols import unwrap
from .writer import GraphWriter

CONTAINERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


class ModuleCalls:
    """Writes module calls of one run: torch's own layers whole, everything else by what happens inside."""

    def __init__(self, writer: GraphWriter, paths: dict[int, str]):
        self.writer, self._paths = writer, paths
        self._of_torch: dict[int, bool] = {}  # id of a module -> whether all below it is torch's own

    def module(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What `module(...)` does while recording."""
        path, writer = self._paths.get(id(module)), self.writer
        if not writer.listening or path is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return original(module, *args, **kwargs)
        with writer.in_module(path, type(module)):
            if path and self._is_leaf(module) and Mode.now() == writer.entry:
                node = writer.graph.call_module(path, writer.arguments(tuple(args)), writer.arguments(kwargs))
                return self._opaque(functools.partial(original, module), args, kwargs, writer.placed(node))
            with self._hooks_written(module):
                return original(module, *args, **kwargs)

    def _is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is one node: torch's own layers, scripts, and modules with backward hooks."""
        if isinstance(module, torch.jit.ScriptModule):
            return True
        if module._backward_hooks or module._backward_pre_hooks:
            return True  # torch keeps their state on the stack of this one call: nodes cannot replay that
        if id(module) not in self._of_torch:
            self._of_torch[id(module)] = all(type(m).__module__.startswith("torch.nn") for m in module.modules())
        if not self._of_torch[id(module)]:
            return False
        for m in module.modules():
            for tensor in (*m._parameters.values(), *m._buffers.values()):
                if tensor is not None and id(tensor) not in self.writer.names:
                    return False  # put in place for this call, as `torch.func.functional_call` does
        # The transformer layers take their fused inference kernel only where no mode listens: keep them whole then.
        if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            return not (torch.is_grad_enabled() or module.training)
        return not isinstance(module, CONTAINERS)

    def _opaque(self, function: Callable[..., Any], args: Any, kwargs: Any, node: fx.Node) -> Any:
        """Run a function whose insides stay out of the graph; `node` makes what it returns."""
        with self.writer.aside():
            out = function(*unwrap(tuple(args)), **unwrap(kwargs))
        self.writer.bind(out, node)
        self.writer.pin(out, node)
        return out

    @contextlib.contextmanager
    def _hooks_written(self, module: nn.Module) -> Iterator[None]:
        """Let a module that is recorded from inside call its hooks through nodes, so that replays call them too."""
        tables = (module._forward_pre_hooks, module._forward_hooks)
        if not any(tables):
            yield
            return
        originals = [table.copy() for table in tables]
        for table in tables:
            for key, hook in table.items():
                table[key] = functools.partial(self._hook, hook)
        try:
            yield
        finally:
            for table, hooks in zip(tables, originals, strict=True):
                table.update({key: hook for key, hook in hooks.items() if key in table})  # one may have removed itself

    def _hook(self, hook: Callable[..., Any], *args: Any) -> Any:
        return self._opaque(hook, args, {}, self.writer.write(hook, args, {}, opaque=True))

    def function(self, original: Callable[..., Any], cls: type, args: Any, kwargs: Any) -> Any:
        """What `Function.apply(...)` does while recording: one call, so that its own backward stays."""
        if not self.writer.listening:
            return original(*args, **kwargs)
        learns = torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        if issubclass(cls, CheckpointFunction) and learns:
            return args[0](*args[2:])  # recorded from inside: the same numbers, and its parameters are seen
        return self._opaque(original, args, kwargs, self.writer.write(original, args, kwargs, opaque=True))
