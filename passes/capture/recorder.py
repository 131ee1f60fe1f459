"""Record one real run of a model as an `fx.Graph`.

The model runs eagerly under a `TorchFunctionMode`. Each call of torch that makes or changes a tensor is written down as a
node, and a whole leaf module (`nn.Linear`, `nn.LSTM`, ...) as one `call_module` on the user's own module, so that its
hooks, buffers and train mode stay alive. Python never sees a raw number that came out of a tensor: see `symbols`.

    model(x) ──runs──► torch calls ──__torch_function__──► nodes
                 └───► module calls ──module_call────────► call_module, or the calls inside
"""

import builtins
import contextlib
import functools
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ..errors import CaptureError
from .call import Call, Mode, set_attribute, set_item
from .symbols import Int, element, guard, is_symbol, rebuild, symbol, unwrap

# What fx can write into its code as it is.
PLAIN = (
    fx.Node, int, float, bool, str, complex, type(None), type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
SIZES = {"size", "shape", "numel", "nelement", "stride", "storage_offset"}  # become symbols
VALUES = {"item", "tolist"}  # become symbols
# Python gets the bare value, and a guard is written.
TESTS = {
    "__bool__", "__int__", "__float__", "__index__", "__complex__", "__len__", "__contains__", "is_nonzero", "equal",
    "allclose", "numpy", "__array__", "is_contiguous", "is_same_size", "__format__",
}  # fmt: skip
EFFECTS = {"register_hook", "backward", "retain_grad"}  # recorded for what they do
RAGGED = {"unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"}  # Python sees how many pieces come
CONTAINERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip
OPERATORS = {
    f"__{name}__": getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow matmul and_ or_ xor neg invert lt le gt ge eq ne "
    "iadd isub imul itruediv getitem".split()
}
_TORCH = os.path.dirname(torch.__file__)
_HERE = os.path.dirname(__file__)
_patching = threading.RLock()  # the patches are global: one recording at a time


class Recorder(TorchFunctionMode):
    """Writes a run of `model` into `graph`.

    Args:
        names: id -> path of every tensor that the model owned before the run.
        hashable: sizes can serve as keys, and are guarded when they do.
    """

    def __init__(self, model: nn.Module, names: dict[int, str], hashable: bool = False):
        super().__init__()
        self.graph, self.model, self.names, self.hashable = fx.Graph(), model, names, hashable
        self.constants: dict[str, torch.Tensor] = {}
        self.entry = Mode.now()
        self.inside, self.open = 0, True
        self._thread = threading.get_ident()
        self._nodes: dict[int, fx.Node] = {}  # id of a live object -> the node that made it
        self._alive: list[Any] = []  # keeps those ids unique
        self._sizes: dict[tuple[Any, ...], Int] = {}
        self._paths = {id(m): path for path, m in model.named_modules()}
        self._stack: list[tuple[str, str, type]] = []  # key (path@2 for a second call), path, class
        self._calls: dict[str, int] = {}
        self._shared: list[tuple[Any, ...]] = []  # numpy arrays that look into tensors, and what they held
        self._buffers = [(m, key, b) for m in model.modules() for key, b in m._buffers.items() if b is not None]

    @property
    def listening(self) -> bool:
        """Whether what happens now belongs to the model, not to a call that is being written down."""
        return self.open and not self.inside

    # ---- objects and the nodes that made them

    def bind(self, value: Any, node: fx.Node, ragged: bool = False) -> None:
        """Remember that `node` makes `value`, and through `getitem` what it holds."""
        if isinstance(value, PLAIN):
            return  # None and small numbers are shared objects: an id says nothing about who made them
        self._nodes[id(value)] = node
        self._alive.append(value)
        if isinstance(value, tuple | list) and ragged:
            self.guard(self.call(len, (node,)), len(value))
        held = enumerate(value) if isinstance(value, tuple | list) else value.items() if isinstance(value, dict) else ()
        for key, item in held:
            if isinstance(item, torch.Tensor | tuple | list | dict):
                self.bind(item, self.call(operator.getitem, (node, key)))

    def attribute(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a parameter, a buffer, or a tensor that was there before the run."""
        if id(tensor) in self._nodes:
            return self._nodes[id(tensor)]
        if tensor.grad_fn is not None:
            raise CaptureError(
                [f"a tensor of shape {tuple(tensor.shape)} in {self.where()} was made by a call that torch does not report"]
            )
        name = self.names.get(id(tensor))
        if name is None:
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), self.graph._root)
        with self.graph.inserting_before(first):
            node = self.graph.get_attr(name)
        self.bind(tensor, node)
        return node

    def arguments(self, value: Any) -> Any:
        """The arguments of a call with nodes in the place of tensors and symbols."""
        if type(value) in (list, tuple) and value and id(value) in self._nodes:
            return self._nodes[id(value)]
        return rebuild(value, self._argument)

    def _argument(self, value: Any) -> Any:
        if id(value) in self._nodes:
            return self._nodes[id(value)]
        if is_symbol(value):
            return value.write() if value.writer is self else value.value
        if isinstance(value, torch.Tensor):
            return self.attribute(value)
        if isinstance(value, torch.Generator):
            raise CaptureError([f"{self.where()} draws from a torch.Generator of its own; use torch's default one"])
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, tuple | list) and hasattr(value, "_fields"):
            node = self.call(type(value), tuple(self.arguments(tuple(value))))
            self.bind(value, node)
            return node
        return value

    def where(self) -> str:
        """The module that is running, for messages."""
        return f"'{self._stack[-1][1]}'" if self._stack and self._stack[-1][1] else "the model"

    # ---- writing nodes

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Write the call of a function whose arguments are nodes already."""
        return self._placed(self.graph.call_function(function, tuple(args), kwargs or {}))

    def guard(self, node: fx.Node, expected: Any) -> None:
        """Write that Python looked at a node and found `expected`."""
        if isinstance(expected, np.ndarray | torch.Tensor | list):
            expected = self.attribute(torch.as_tensor(expected).clone())
        self.call(guard, (node, expected, _caller()))

    def write(self, function: Callable[..., Any], args: Any, kwargs: Any, opaque: bool = False) -> fx.Node:
        """Write the call of a torch function in the plainest form that fx has for it."""
        name, args, kwargs = getattr(function, "__name__", "call"), self.arguments(tuple(args)), self.arguments(kwargs)
        mode = Mode.now()
        if opaque or mode != self.entry or not _plain((args, kwargs)):
            return self._spelled_out(function, mode, args, kwargs)
        if name in OPERATORS and not kwargs:
            return self.call(OPERATORS[name], args)
        if getattr(torch.Tensor, name, None) == function and args and isinstance(args[0], fx.Node):
            return self._placed(self.graph.call_method(name, args, kwargs))
        if getattr(function, "__module__", "") == "torch._tensor":
            function = Call(function)
        return self.call(function, args, kwargs)

    def _spelled_out(self, function: Callable[..., Any], mode: Mode, args: Any, kwargs: Any) -> fx.Node:
        if _plain((args, kwargs)):
            return self.call(Call(function, mode, self.entry), args, kwargs)
        nodes: list[fx.Node] = []

        def hole(value: Any) -> Any:
            if isinstance(value, fx.Node):
                nodes.append(value)
                return fx.Node
            return value

        slots = rebuild((args, kwargs), hole)
        return self.call(Call(function, mode, self.entry, slots), tuple(nodes))

    def _placed(self, node: fx.Node) -> fx.Node:
        node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in self._stack if path}
        return node

    # ---- what torch reports

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, then write it down."""
        bare_args, bare_kwargs = unwrap(tuple(args)), unwrap(kwargs or {})
        if self.inside or threading.get_ident() != self._thread:
            return function(*bare_args, **bare_kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise CaptureError([f"{self.where()} uses a torch.func transform (vmap, grad, ...)"])
        with self.aside():
            out = function(*bare_args, **bare_kwargs)
        return self._heard(function, getattr(function, "__name__", ""), out, args, kwargs or {})

    def _heard(self, function: Any, name: str, out: Any, args: Any, kwargs: Any) -> Any:
        field = function.__self__.__name__ if name in ("__get__", "__set__") else None
        if (field or name) in SIZES:
            return self._size(out, function, args[0], *args[1:], **kwargs)
        if name in VALUES | TESTS:
            return self._value(name, out, function, args, kwargs)
        if name == "__set__":
            self.bind(args[0], self.call(set_attribute, self.arguments((args[0], field, args[1]))))
        elif field:
            if isinstance(out, torch.Tensor):
                self.bind(out, self.call(getattr, self.arguments((args[0], field))))
        elif name == "__setitem__":
            self.bind(args[0], self.write(set_item, args, {}))
        elif _has_tensor(out) or name in EFFECTS or (out is None and _has_tensor((args, kwargs))):
            node = self.write(function, args, kwargs)
            if out is not None:
                self.bind(out, node, ragged=name in RAGGED)
        return out

    def _size(self, out: Any, function: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sizes of a computed tensor are symbols; those of parameters and constants are numbers."""
        node = self._nodes.get(id(tensor))
        if node is None or node.op == "get_attr" or not isinstance(out, int | tuple):
            return out
        kind = function.__self__.__name__ if function.__name__ == "__get__" else function.__name__
        method = getattr(torch.Tensor, "size" if kind == "shape" else kind)
        if isinstance(out, int):
            return self._known_size(node, method, out, *args, *kwargs.values())
        return type(out)(self._known_size(node, method, v, i) for i, v in enumerate(out))

    def _known_size(self, node: fx.Node, method: Any, value: int, *args: Any) -> Int:
        key = (node, method, unwrap(args))
        found = self._sizes.get(key)
        if found is None or found.value != value:  # resized in place
            found = self._sizes[key] = Int(self, value, method, node, *args)
        return found

    def _value(self, name: str, out: Any, function: Any, args: Any, kwargs: Any) -> Any:
        """Data that leaves the tensors: a symbol where Python can carry one, else the value and a guard on it."""
        tensor, node = args[0], self._nodes.get(id(args[0]))
        if (node is None or node.op == "get_attr") and not _has_tensor(args[1:]):
            return out
        if name == "item" and not isinstance(out, bool | complex):
            return symbol(self, out, function, tensor)
        if name == "tolist" and tensor.dim() == 1 and 0 < len(out) <= 64 and not isinstance(out[0], bool):
            self.guard(self.call(len, (node,)), len(out))
            return [symbol(self, v, element, tensor, i) for i, v in enumerate(out)]
        if name == "__format__":
            if tensor.dim() == 0:
                self.guard(self.call(torch.Tensor.item, (node,)), tensor.item())
        elif name in ("numpy", "__array__", "tolist"):
            assert node is not None
            self.guard(node, np.array(out) if name == "tolist" else out.copy())
            if name != "tolist":
                self._shared.append((out, out.copy(), tensor, tensor._version))
        else:
            self.guard(self.write(function, args, kwargs), out)
        return out

    # ---- whole modules, autograd functions, hooks

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is kept whole: torch's own layers, scripts, and what carries backward hooks."""
        if isinstance(module, torch.jit.ScriptModule):
            return True
        if module._backward_hooks or module._backward_pre_hooks:
            return True  # their state lives in one Python call: it cannot be replayed from outside
        if not all(type(m).__module__.startswith("torch.nn") for m in module.modules()):
            return False
        # The fused inference kernel of the transformer layers is chosen only where no mode listens: keep them whole then.
        whole = isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) and not (
            torch.is_grad_enabled() or module.training
        )
        return whole or not isinstance(module, CONTAINERS)

    def opaque(self, function: Callable[..., Any], args: Any, kwargs: Any, write: Callable[[], fx.Node]) -> Any:
        """Run something whose insides stay out of the graph, and bind what it returns."""
        node = write()
        with self.aside():
            out = function(*unwrap(tuple(args)), **unwrap(kwargs))
        self.bind(out, node)
        return out

    def module_call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What `module(...)` does while recording."""
        path = self._paths.get(id(module))
        if not self.listening or path is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return original(module, *args, **kwargs)
        count = self._calls[path] = self._calls.get(path, 0) + 1
        self._stack.append((path if count == 1 else f"{path}@{count}", path, type(module)))
        try:
            if self.is_leaf(module) and Mode.now() == self.entry:
                def write() -> fx.Node:
                    return self._placed(self.graph.call_module(path, self.arguments(args), self.arguments(kwargs)))

                return self.opaque(functools.partial(original, module), args, kwargs, write)
            with self._hooks_written(module):
                return original(module, *args, **kwargs)
        finally:
            self._stack.pop()

    @contextlib.contextmanager
    def _hooks_written(self, module: nn.Module) -> Iterator[None]:
        """Let a module that is recorded from inside call its forward hooks through nodes, so that replays call them too."""
        kept = module._forward_pre_hooks.copy(), module._forward_hooks.copy()
        if not any(kept):
            yield
            return
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in hooks.items():
                hooks[key] = functools.partial(self._hook_call, hook)
        try:
            yield
        finally:
            module._forward_pre_hooks.update(kept[0])
            module._forward_hooks.update(kept[1])

    def _hook_call(self, hook: Callable[..., Any], *args: Any) -> Any:
        return self.opaque(hook, args, {}, lambda: self._effect(self.write(hook, args, {}, opaque=True)))

    @staticmethod
    def _effect(node: fx.Node) -> fx.Node:
        node.meta["effect"] = True
        return node

    def autograd_function(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What `Function.apply(...)` does while recording: one call, so that its own backward stays."""
        if not self.listening:
            return original(*args, **kwargs)
        return self.opaque(original, args, kwargs, lambda: self.write(original, args, kwargs, opaque=True))

    # ---- the end

    def finish(self, outputs: list[Any]) -> None:
        """Write what the run left behind in buffers, and close the graph."""
        for array, held, tensor, version in self._shared:
            if tensor._version == version and not np.array_equal(array, held, equal_nan=array.dtype.kind == "f"):
                raise CaptureError(["the model writes into a tensor through numpy"])
        results = self.arguments(list(outputs))
        for module, key, old in self._buffers:
            new = module._buffers.get(key)
            if new is old:
                continue
            if new is None or new.shape != old.shape or new.dtype != old.dtype:
                raise CaptureError([f"buffer '{self.names[id(old)]}' is replaced by one of another shape or type"])
            self.call(set_attribute, (self.attribute(old), "data", self.arguments(new)))
            module._buffers[key] = old
        self.graph.output(tuple(results))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What runs here is not the model's."""
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Send module calls, `Function.apply` and `len` of this thread through the recorder."""
        me = threading.get_ident()
        with _patching:
            call, apply, length = nn.Module.__call__, torch.autograd.Function.__dict__["apply"], builtins.len

            def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() != me:
                    return call(module, *args, **kwargs)
                return self.module_call(call, module, args, kwargs)

            def recorded_apply(cls: type, *args: Any, **kwargs: Any) -> Any:
                original = apply.__get__(None, cls)  # looked up now, `cls.apply` would be this patch
                if threading.get_ident() != me:
                    return original(*args, **kwargs)
                return self.autograd_function(original, args, kwargs)

            def recorded_len(value: Any) -> Any:
                if isinstance(value, torch.Tensor) and self.listening and threading.get_ident() == me and value.dim():
                    return value.size(0)
                return length(value)

            nn.Module.__call__ = recorded_call  # type: ignore[assignment,method-assign]  # put back below
            torch.autograd.Function.apply = classmethod(recorded_apply)  # type: ignore[assignment,method-assign]
            builtins.len = recorded_len
            try:
                with torch.compiler.set_stance("force_eager"), self:
                    yield
            finally:
                self.open = False
                nn.Module.__call__ = call  # type: ignore[method-assign]
                torch.autograd.Function.apply = apply  # type: ignore[method-assign]
                builtins.len = length


def _plain(value: Any) -> bool:
    found = True

    def look(v: Any) -> None:
        nonlocal found
        found = found and isinstance(v, PLAIN)

    rebuild(value, look)
    return found


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, torch.Tensor)


def _caller() -> str:
    """The file and line of the model that is running, outside torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith((_HERE, _TORCH)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(os.path.dirname(_TORCH) + os.sep)}:{frame.f_lineno}"
