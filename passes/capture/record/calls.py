"""What a recording watches: calls of torch functions, written by RULES, and of modules, hooks, autograd functions."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from ...errors import CaptureError
from ...graph.nodes import Mode, set_attribute, set_item
from .symbols import symbol, unwrap
from .writer import GraphWriter

_LONGEST = 64  # a list of more numbers than this is compared as one constant
CONTAINERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
)  # fmt: skip


class TorchCalls(TorchFunctionMode):
    """Runs each torch call of the model and writes it."""

    def __init__(self, writer: GraphWriter):
        super().__init__()
        self.writer = writer
        self.arrays: list[tuple[Any, Any, torch.Tensor, int]] = []  # array on a tensor's memory, its copy, version

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, then write it."""
        bare_args, bare_kwargs = unwrap(tuple(args)), unwrap(kwargs or {})
        if not self.writer.listening:
            return function(*bare_args, **bare_kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise CaptureError([f"{self.writer.where()} uses a torch.func transform (vmap, grad, ...)"])
        outer, self.writer.reported = self.writer.reported, True
        try:
            return self._written(function, args, kwargs or {}, bare_args, bare_kwargs)
        finally:
            self.writer.reported = outer

    def _written(self, function: Any, args: Any, kwargs: Any, bare_args: Any, bare_kwargs: Any) -> Any:
        with self.writer.aside():
            out = function(*bare_args, **bare_kwargs)
        if isinstance(out, torch.Tensor) and out.is_nested:
            raise CaptureError([f"{self.writer.where()} makes a nested tensor, whose sizes no graph can follow"])
        name = getattr(function, "__name__", "")
        field = function.__self__.__name__ if name in ("__get__", "__set__") else ""
        rule = RULES.get(field if field in _SIZES else name, _computes)
        return rule(self, TorchCall(function, args, kwargs, field or name, out))

    def finish(self) -> None:
        """Raise a `CaptureError` if the run wrote into a tensor through numpy: no call of torch shows that."""
        for array, copy, tensor, version in self.arrays:
            if tensor._version == version and not np.array_equal(array, copy, equal_nan=array.dtype.kind == "f"):
                raise CaptureError(["the model writes into a tensor through numpy"])


class Unreported(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Sees the operations of calls that torch does not report as functions: scripts, extensions.

    What they make of values of the run would stand in the graph as a constant.
    """

    supports_higher_order_operators = True

    def __init__(self, writer: GraphWriter):
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.writer = writer

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note where it ran."""
        writer = self.writer
        if writer.unreported is None and writer.listening and not writer.reported:
            given = pytree.tree_leaves((args, kwargs))
            if any(isinstance(value, torch.Tensor) and writer.known(value) is not None for value in given):
                writer.unreported = f"{writer.where()} computes {str(function).partition('.')[2]} in a call"
        with writer.aside():  # what runs here would be reported as a call of its own
            return function(*args, **(kwargs or {}))


class TorchCall(NamedTuple):
    """One call that torch reported, after it ran."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str  # of the function, or of the attribute that is read or set
    out: Any


# ---- rules: each writes a call, and returns what Python gets


def _computes(calls: TorchCalls, call: TorchCall) -> Any:
    """Any other function: a node, if a tensor comes out or may have been written to; a guard, if a number comes out."""
    if _has_tensor(call.out) or (call.out is None and _has_tensor((call.args, call.kwargs))):
        return _acts(calls, call)
    if isinstance(call.out, torch.UntypedStorage | torch.TypedStorage) and calls.writer.computed(call.args[0]):
        raise CaptureError([f"{calls.writer.where()} looks at the memory of a tensor, past torch"])
    return call.out if call.name in _KNOWN or not _is_plain(call.out) else _test(calls, call)


def _acts(calls: TorchCalls, call: TorchCall, look: Any = None) -> Any:
    """A node, whatever comes out. `look`: a function that Python applies to it, so that its value is guarded."""
    node, writer = calls.writer.write(*call[:3]), calls.writer
    if look is not None:  # before the items are written: another number of them must meet the guard first
        writer.guard(writer.call(look, (node,)), look(call.out))
    if call.out is not None:
        writer.bind(call.out, node)
    return call.out


def _read_attribute(calls: TorchCalls, call: TorchCall) -> Any:
    is_tensor, writer = isinstance(call.out, torch.Tensor), calls.writer
    reads = call.name not in _KNOWN and _is_plain(call.out) and writer.known(call.args[0]) is not None
    if is_tensor or reads:
        node = writer.call(getattr, writer.arguments((call.args[0], call.name)))
        writer.bind(call.out, node) if is_tensor else writer.guard(node, call.out)
    return call.out


def _set_attribute(calls: TorchCalls, call: TorchCall) -> Any:
    """`x.data = y` becomes an expression, so that later readers of x depend on it."""
    arguments = calls.writer.arguments((call.args[0], call.name, call.args[1]))
    calls.writer.bind(call.args[0], calls.writer.call(set_attribute, arguments))
    return call.out


def _set_item(calls: TorchCalls, call: TorchCall) -> Any:
    """`x[i] = y` becomes an expression, too."""
    calls.writer.bind(call.args[0], calls.writer.write(set_item, call.args, {}))
    return call.out


def _size(calls: TorchCalls, call: TorchCall) -> Any:
    """Sizes of a computed tensor are symbols; those of parameters and constants are numbers."""
    writer, (tensor, *args) = calls.writer, call.args
    node = writer.computed(tensor)
    if node is None or not isinstance(call.out, int | tuple):
        return call.out
    method = getattr(torch.Tensor, "size" if call.name == "shape" else call.name)
    if isinstance(call.out, int):
        return writer.size(node, method, call.out, *unwrap(args), *unwrap(tuple(call.kwargs.values())))
    return type(call.out)(writer.size(node, method, v, i) for i, v in enumerate(call.out))


def _item(calls: TorchCalls, call: TorchCall) -> Any:
    """A number from the data: a symbol, where Python can carry one."""
    if isinstance(call.out, bool | complex):
        return _test(calls, call)
    if calls.writer.known(call.args[0]) is None:
        return call.out
    number = symbol(calls.writer, call.out, call.function, call.args[0])
    number.write()  # now: the tensor may be written to before the number is used
    return number


def _list(calls: TorchCalls, call: TorchCall) -> Any:
    """A short list of numbers is a list of symbols; a long one is compared as a whole."""
    writer, tensor, out = calls.writer, call.args[0], call.out
    if writer.known(tensor) is None:
        return out
    if tensor.dim() == 1 and out and type(out[0]) in (int, float):
        # first: a longer one, which may be compared as a whole, must meet this guard
        writer.guard(writer.call(torch.Tensor.size, (writer.known(tensor), 0)), len(out))
        if len(out) <= _LONGEST:
            numbers = writer.write(*call[:3])
            return [symbol(writer, v, operator.getitem, numbers, i) for i, v in enumerate(out)]
    writer.guard(writer.attribute(tensor), tensor.detach())
    return out


def _array(calls: TorchCalls, call: TorchCall) -> Any:
    """numpy looks at the memory of a tensor: all of it is guarded, and watched for writes."""
    tensor = call.args[0]
    if calls.writer.known(tensor) is not None:
        calls.writer.guard(calls.writer.attribute(tensor), tensor.detach())
        calls.arrays.append((call.out, call.out.copy(), tensor, tensor._version))
    return call.out


def _format(calls: TorchCalls, call: TorchCall) -> Any:
    """`f"expert_{i}"` looks at a number: such names are keys of dicts."""
    tensor, writer = call.args[0], calls.writer
    if tensor.dim() == 0 and (node := writer.known(tensor)) is not None:
        writer.guard(writer.call(torch.Tensor.item, (node,)), tensor.item())
    return call.out


def _test(calls: TorchCalls, call: TorchCall) -> Any:
    """Python gets a bare value, and a guard says so."""
    given = [*call.args, *call.kwargs.values()]
    if any(isinstance(a, torch.Tensor) and calls.writer.known(a) is not None for a in given):
        calls.writer.guard(calls.writer.write(*call[:3]), call.out)
    return call.out


# What is the same for all tensors that a graph takes in one place: their type and number of dimensions are in its key.
_KNOWN = frozenset((
    "dim", "ndim", "ndimension", "element_size", "itemsize", "type", "dtype", "device", "layout", "names", "has_names",
    "is_floating_point", "is_complex", "is_signed", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_sparse_csr",
    "is_quantized", "is_mkldnn", "is_mps", "is_xpu", "is_nested", "is_inference", "is_conj", "is_neg", "get_device",
    "requires_grad", "is_leaf", "retains_grad", "output_nr", "_is_view", "sparse_dim", "dense_dim", "is_shared",
    "is_pinned", "__hash__", "_backward_hooks", "_version", "name", "volatile",
))  # fmt: skip
_SIZES = ("size", "shape", "numel", "nelement", "stride", "storage_offset")
_PIECES = ("unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit")

RULES: dict[str, Callable[[TorchCalls, TorchCall], Any]] = {
    **dict.fromkeys(_SIZES, _size),
    "item": _item,
    "tolist": _list,
    **dict.fromkeys(("numpy", "__array__"), _array),
    "__format__": _format,
    **dict.fromkeys(("__repr__", "__str__"), lambda _, call: call.out),  # decides nothing: a graph does without it
    **dict.fromkeys(("__bool__", "__int__", "__float__", "__index__", "__complex__", "__len__", "__contains__"), _test),
    **dict.fromkeys(("is_nonzero", "equal", "allclose", "is_contiguous", "is_same_size"), _test),
    "__get__": _read_attribute,
    "__set__": _set_attribute,
    "__setitem__": _set_item,
    **dict.fromkeys(("register_hook", "register_post_accumulate_grad_hook", "backward", "retain_grad"), _acts),
    # Python sees how many pieces come, and how many dimensions are left.
    **dict.fromkeys(_PIECES, functools.partial(_acts, look=len)),
    **dict.fromkeys(("squeeze", "squeeze_", "squeeze_copy"), functools.partial(_acts, look=torch.Tensor.dim)),
}


def _is_plain(value: Any) -> bool:
    """Whether Python can branch on a value: a number, a text, or several."""
    return isinstance(value, int | float | complex | str) or (
        isinstance(value, tuple | list) and any(map(_is_plain, value))
    )


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, torch.Tensor)


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
        # torch keeps the state of backward hooks on the stack of this one call: nodes cannot replay that.
        if isinstance(module, torch.jit.ScriptModule) or module._backward_hooks or module._backward_pre_hooks:
            return True
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
