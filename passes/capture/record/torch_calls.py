"""Calls of torch functions: each is run, and written by the rule that RULES has for its name."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError
from ...graph.nodes import set_attribute, set_item
from .symbols import symbol, unwrap
from .writer import GraphWriter

_LONGEST = 64  # a list of more numbers than this is compared as one constant


class TorchCalls(TorchFunctionMode):
    """Runs each torch call of the model and writes it."""

    def __init__(self, writer: GraphWriter):
        super().__init__()
        self.writer = writer
        self._arrays: list[tuple[Any, Any, torch.Tensor, int]] = []  # array on a tensor's memory, its copy, version

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, then write it."""
        bare_args, bare_kwargs = unwrap(tuple(args)), unwrap(kwargs or {})
        if not self.writer.listening:
            return function(*bare_args, **bare_kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise CaptureError([f"{self.writer.where()} uses a torch.func transform (vmap, grad, ...)"])
        with self.writer.aside():
            out = function(*bare_args, **bare_kwargs)
        if isinstance(out, torch.Tensor) and out.is_nested:
            raise CaptureError([f"{self.writer.where()} makes a nested tensor, whose sizes no graph can follow"])
        name = getattr(function, "__name__", "")
        field = function.__self__.__name__ if name in ("__get__", "__set__") else ""
        rule = RULES.get(field if field in _SIZES else name, _computes)
        return rule(self, TorchCall(function, args, kwargs or {}, field or name, out))

    def watch(self, array: Any, tensor: torch.Tensor) -> None:
        """Remember an array that shares the memory of a tensor."""
        self._arrays.append((array, array.copy(), tensor, tensor._version))

    def finish(self) -> None:
        """Refuse a run that wrote into a tensor through numpy: no call of torch shows that.

        Raises:
            CaptureError: it did.
        """
        for array, copy, tensor, version in self._arrays:
            if tensor._version == version and not np.array_equal(array, copy, equal_nan=array.dtype.kind == "f"):
                raise CaptureError(["the model writes into a tensor through numpy"])


class TorchCall(NamedTuple):
    """One call that torch reported, after it ran."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str  # of the function, or of the attribute that is read or set
    out: Any


# ---- rules: each writes a call, and returns what Python gets


def _computes(calls: TorchCalls, call: TorchCall) -> Any:
    """Any other function: a node, if a tensor comes out or may have been written to."""
    if _has_tensor(call.out) or (call.out is None and _has_tensor((call.args, call.kwargs))):
        return _acts(calls, call)
    return call.out


def _acts(calls: TorchCalls, call: TorchCall, look: Any = None) -> Any:
    """A node, whatever comes out. `look`: a function that Python applies to it, so that its value is guarded."""
    node, writer = calls.writer.write(*call[:3]), calls.writer
    if look is not None:  # before the items are written: another number of them must meet the guard first
        writer.guard(writer.call(look, (node,)), look(call.out))
    if call.out is not None:
        writer.bind(call.out, node)
    return call.out


def _read_attribute(calls: TorchCalls, call: TorchCall) -> Any:
    if isinstance(call.out, torch.Tensor):
        arguments = calls.writer.arguments((call.args[0], call.name))
        calls.writer.bind(call.out, calls.writer.call(getattr, arguments))
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
    node = writer.node_of(tensor)
    if node is None or node.op == "get_attr" or not isinstance(call.out, int | tuple):
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
    if tensor.dim() == 1 and 0 < len(out) <= _LONGEST and type(out[0]) in (int, float):
        numbers = writer.write(*call[:3])
        writer.guard(writer.call(len, (numbers,)), len(out))
        return [symbol(writer, v, operator.getitem, numbers, i) for i, v in enumerate(out)]
    writer.guard(writer.attribute(tensor), tensor.detach())
    return out


def _array(calls: TorchCalls, call: TorchCall) -> Any:
    """numpy looks at the memory of a tensor: all of it is guarded, and watched for writes."""
    tensor = call.args[0]
    if calls.writer.known(tensor) is not None:
        calls.writer.guard(calls.writer.attribute(tensor), tensor.detach())
        calls.watch(call.out, tensor)
    return call.out


def _format(calls: TorchCalls, call: TorchCall) -> Any:
    """`f"expert_{i}"` looks at a number: such names are keys of dicts."""
    tensor, writer = call.args[0], calls.writer
    if tensor.dim() == 0 and (node := writer.known(tensor)) is not None:
        writer.guard(writer.call(torch.Tensor.item, (node,)), tensor.item())
    return call.out


def _test(calls: TorchCalls, call: TorchCall) -> Any:
    """Python gets a bare value, and a guard says so."""
    if calls.writer.known(call.args[0]) is not None or _has_tensor(call.args[1:]):
        calls.writer.guard(calls.writer.write(*call[:3]), call.out)
    return call.out


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


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, torch.Tensor)
