"""What torch reports of a run: each call of a torch function, written down as the graph needs it."""

import operator
import threading
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError
from ...graph.nodes import set_attribute, set_item
from .symbols import symbol, unwrap
from .writer import Tape

SIZES = {"size", "shape", "numel", "nelement", "stride", "storage_offset"}  # become symbols
VALUES = {"item", "tolist"}  # become symbols
# Python gets the bare value, and a guard is written.
TESTS = {
    "__bool__", "__int__", "__float__", "__index__", "__complex__", "__len__", "__contains__", "is_nonzero", "equal",
    "allclose", "numpy", "__array__", "is_contiguous", "is_same_size", "__format__", "__repr__", "__str__",
}  # fmt: skip
# Recorded for what they do.
EFFECTS = {"register_hook", "register_post_accumulate_grad_hook", "backward", "retain_grad"}
RAGGED = {"unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"}  # Python sees how many pieces come
RANKED = {"squeeze", "squeeze_", "squeeze_copy"}  # Python sees how many dimensions are left
_LONGEST = 64  # a list of more numbers than this is compared as one constant


class Listener(TorchFunctionMode):
    """Runs each torch call of the model and writes it onto a tape."""

    def __init__(self, tape: Tape):
        super().__init__()
        self.tape = tape
        self._shared: list[tuple[Any, ...]] = []  # numpy arrays that look into tensors, and what they held

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, then write it down."""
        bare_args, bare_kwargs = unwrap(tuple(args)), unwrap(kwargs or {})
        if self.tape.inside or threading.get_ident() != self.tape.thread:
            return function(*bare_args, **bare_kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise CaptureError([f"{self.tape.where()} uses a torch.func transform (vmap, grad, ...)"])
        with self.tape.aside():
            out = function(*bare_args, **bare_kwargs)
        if isinstance(out, torch.Tensor) and out.is_nested:
            raise CaptureError([f"{self.tape.where()} makes a nested tensor, whose sizes no graph can follow"])
        return self._heard(function, getattr(function, "__name__", ""), out, args, kwargs or {})

    def _heard(self, function: Any, name: str, out: Any, args: Any, kwargs: Any) -> Any:
        field = function.__self__.__name__ if name in ("__get__", "__set__") else None
        if (field or name) in SIZES:
            return self._size(out, function, args[0], *args[1:], **kwargs)
        if name in VALUES | TESTS:
            return self._value(name, out, function, args, kwargs)
        if name == "__set__":
            self._rebind(args[0], self.tape.call(set_attribute, self.tape.arguments((args[0], field, args[1]))))
        elif field:
            self._field(field, out, args[0])
        elif name == "__setitem__":
            self._rebind(args[0], self.tape.write(set_item, args, {}))
        elif _has_tensor(out) or name in EFFECTS or (out is None and _has_tensor((args, kwargs))):
            self._result(name, out, self.tape.write(function, args, kwargs))
        return out

    def _result(self, name: str, out: Any, node: Any) -> None:
        if name in RAGGED:
            self.tape.guard(self.tape.call(len, (node,)), len(out))
        if name in RANKED:
            self.tape.guard(self.tape.call(torch.Tensor.dim, (node,)), out.dim())
        if out is not None:
            self.tape.bind(out, node)

    def _rebind(self, tensor: torch.Tensor, node: Any) -> None:
        self.tape.bind(tensor, node)

    def _field(self, field: str, out: Any, tensor: torch.Tensor) -> None:
        if isinstance(out, torch.Tensor):
            self.tape.bind(out, self.tape.call(getattr, self.tape.arguments((tensor, field))))

    def _size(self, out: Any, function: Any, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Sizes of a computed tensor are symbols; those of parameters and constants are numbers."""
        node = self.tape.node_of(tensor)
        if node is None or node.op == "get_attr" or not isinstance(out, int | tuple):
            return out
        kind = function.__self__.__name__ if function.__name__ == "__get__" else function.__name__
        method = getattr(torch.Tensor, "size" if kind == "shape" else kind)
        if isinstance(out, int):
            return self.tape.size(node, method, out, *unwrap(args), *unwrap(tuple(kwargs.values())))
        return type(out)(self.tape.size(node, method, v, i) for i, v in enumerate(out))

    def _value(self, name: str, out: Any, function: Any, args: Any, kwargs: Any) -> Any:
        """Data that leaves the tensors: a symbol where Python can carry one, else the value and a guard on it."""
        tensor, node = args[0], self.tape.known(args[0])
        if node is None and not _has_tensor(args[1:]):
            return out
        if name == "item" and not isinstance(out, bool | complex):
            return self._read_now(symbol(self.tape, out, function, tensor))
        if name == "tolist" and tensor.dim() == 1 and 0 < len(out) <= _LONGEST and type(out[0]) in (int, float):
            numbers = self.tape.write(function, args, kwargs)
            self.tape.guard(self.tape.call(len, (numbers,)), len(out))
            return [symbol(self.tape, v, operator.getitem, numbers, i) for i, v in enumerate(out)]
        if name in ("__format__", "__repr__", "__str__"):
            if tensor.dim() == 0 and name == "__format__":
                self.tape.guard(self.tape.call(torch.Tensor.item, (node,)), tensor.item())
        elif name in ("numpy", "__array__", "tolist"):
            self.tape.guard(self.tape.attribute(tensor), tensor.detach())
            if name != "tolist":
                self._shared.append((out, out.copy(), tensor, tensor._version))
        else:
            self.tape.guard(self.tape.write(function, args, kwargs), out)
        return out

    @staticmethod
    def _read_now(number: Any) -> Any:
        number.write()  # the tensor may be written to before the number is used
        return number

    def finish(self) -> None:
        """Refuse what went past torch."""
        for array, held, tensor, version in self._shared:
            if tensor._version == version and not np.array_equal(array, held, equal_nan=array.dtype.kind == "f"):
                raise CaptureError(["the model writes into a tensor through numpy"])


def _has_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_has_tensor, value))
    if isinstance(value, dict):
        return any(map(_has_tensor, value.values()))
    return isinstance(value, torch.Tensor)
