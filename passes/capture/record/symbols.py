"""Numbers that came out of tensors: they compute like numbers and remember how they were computed.

    n = x.shape[0]          Int(8, size(x, 0))         no node yet
    m = n * 2 + 1           Int(17, ...)               still none
    torch.zeros(m)          mul ─► add ─► zeros        written where an operation uses it
    if m > 16: ...          gt ─► guard(_, True)       Python branches: the value is used, and guarded

A symbol hands Python its bare value only together with a `guard` node, so replaying the graph on other data raises
`GuardMiss` rather than follow a path that the model would not have taken.
"""

import functools
import math
import operator
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx, nn

from ...graph.pytrees import rebuild
from ...graph.walk import walk

_DEPTH = 5  # how deep is searched: objects handed to torch, and attributes set in a forward, are shallow

_CLOSED = (
    int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device,
    nn.Module, type, types.ModuleType, types.BuiltinFunctionType,
)  # fmt: skip


class _Writer(Protocol):
    """What symbols need of the `GraphWriter` that made them."""

    hashable: bool

    @property
    def listening(self) -> bool: ...
    def call(self, function: Callable[..., Any], args: Any) -> fx.Node: ...
    def arguments(self, value: Any) -> Any: ...
    def guard(self, node: fx.Node, expected: Any) -> None: ...


class UnhashableSizeError(TypeError):
    """A size served as a key, and the recording is one in which sizes cannot be hashed."""


class Symbol:
    """A number, the expression (function, arguments) that made it, and the node that holds it once one is written."""

    def __init__(self, writer: _Writer, value: Any, function: Callable[..., Any], *args: Any):
        self.writer, self.value, self.expression = writer, value, (function, args)
        self.written: fx.Node | None = None
        self.pinned = False  # a guard holds it to its value

    node = property(lambda self: Bare(self))  # what C++ asks of a SymInt that reaches it past the mode

    def write(self) -> fx.Node:
        """The node that computes this number, written where it is first needed."""
        if self.written is None:
            function, args = self.expression
            self.written = self.writer.call(function, self.writer.arguments(args))
        return self.written

    def bare(self) -> Any:
        """The value for Python to branch on: guarded while the recording lasts."""
        if self.writer.listening and not self.pinned:
            self.writer.guard(self.write(), self.value)
            self.pinned = True
        return self.value

    def compute(self, function: Callable[..., Any], *args: Any) -> Any:
        """Apply an arithmetic function and keep the expression; a truth value is guarded at once."""
        if not all(isinstance(a, (Symbol, int, float, bool)) for a in args):
            return NotImplemented
        value = function(*unwrap(args))
        live = [a for a in args if is_symbol(a) and a.writer.listening]  # one of an earlier run is a number by now
        if not live or all(a.pinned for a in live):
            return value
        if not isinstance(value, int | float):  # complex: no symbol can carry it
            return function(*(a.bare() if is_symbol(a) else a for a in args))
        out = symbol(live[0].writer, value, function, *args)
        return out.bare() if isinstance(value, bool) else out

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.bare(), name)  # bit_length, real, numerator, ...: Python reads the value

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __repr__(self) -> str:
        return repr(self.bare())  # the text may be a key: `self.norms[str(n)]`

    def __format__(self, spec: str) -> str:
        return format(self.bare(), spec)

    def __hash__(self) -> int:
        # einops and others take their path for symbolic sizes when a size cannot be hashed; where this kills the run,
        # the recorder runs again with hashable sizes, and guards them.
        if not self.writer.hashable:
            raise UnhashableSizeError("unhashable type: a size while recording")
        return hash(self.bare())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:  # any dtype
        return np.asarray(self.bare(), dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (type(self.bare()), (self.value,))


class Bare:
    """What C++ sees of a symbol that reaches it past the mode: a constant, guarded."""

    def __init__(self, owner: Symbol):
        self.value = owner.bare()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = {"is_int": isinstance(self.value, int), "is_float": isinstance(self.value, float)}
        answers |= {"is_constant": True, "is_bool": False, "is_nested_int": False, "is_symbolic": False}
        return lambda *_: None if name == "nested_int" else answers.get(name, self.value)


class Int(Symbol, torch.SymInt):
    """An integer to Python, a `SymInt` to torch's argument parser, an `int` to no C code: nothing reads it unseen."""

    __class__ = property(lambda _: int)  # isinstance(x, int) must hold
    __hash__ = Symbol.__hash__


class Float(Symbol, torch.SymFloat):
    """The same for a float."""

    __class__ = property(lambda _: float)  # isinstance(x, float) must hold
    __hash__ = Symbol.__hash__

    def is_integer(self) -> bool:
        """Whether the bare value is whole; guarded."""
        return bool(self.bare().is_integer())


def symbol(writer: _Writer, value: Any, function: Callable[..., Any], *args: Any) -> Any:
    """The symbol of the right kind for `value`; a value that is no number stays as it is."""
    for kind, symbol_class in ((bool, Symbol), (int, Int), (float, Float)):  # a truth value is guarded at once
        if isinstance(value, kind):
            return symbol_class(writer, value, function, *args)
    return value


def is_symbol(value: Any) -> bool:
    """Whether `value` is a symbol, whatever class it claims to be."""
    return issubclass(type(value), Symbol)


def is_live(value: Any) -> bool:
    """Whether `value` is a tensor or a symbol."""
    return isinstance(value, torch.Tensor) or is_symbol(value)


def unwrap(value: Any) -> Any:
    """The same arguments with bare numbers in the place of symbols."""
    if type(value) is torch.Size and not any(is_symbol(v) for v in value):
        return value
    return rebuild(value, lambda v: v.value if is_symbol(v) else v)


def reachable(value: Any) -> Iterator[Any]:
    """The tensors and symbols in a value: in its items, its fields, its closure, its bound arguments.

    Modules stay closed: attributes that are set on them in a forward are recorded there.
    """
    return (held for _, _, held in walk(value, _inside, _DEPTH) if is_live(held))


def _inside(value: Any) -> Any:
    if is_live(value) or isinstance(value, _CLOSED):
        return None
    if isinstance(value, dict | list | tuple | set | frozenset):
        return value
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return [*map(_content, value.__closure__ or ()), *(value.__defaults__ or ())]
    return getattr(value, "__dict__", None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return None


def _arithmetic(name: str, function: Callable[..., Any], swapped: bool = False) -> None:
    def method(self: Symbol, *args: Any) -> Any:
        return self.compute(function, *((args[0], self) if swapped else (self, *args)))

    setattr(Symbol, f"__{'r' if swapped else ''}{name}__", method)


for _name in "add sub mul truediv floordiv mod pow lshift rshift and or xor".split():
    _function = getattr(operator, _name + "_" * (_name in ("and", "or")))
    _arithmetic(_name, _function)
    _arithmetic(_name, _function, swapped=True)
for _name in "neg pos abs invert lt le gt ge eq ne".split():
    _arithmetic(_name, getattr(operator, _name))
for _name, _function in (("ceil", math.ceil), ("floor", math.floor), ("trunc", math.trunc)):
    _arithmetic(_name, _function)
_arithmetic("round", round)
_arithmetic("bool", operator.truth)
for _name, _function in (("int", int), ("float", float), ("index", operator.index)):
    setattr(Symbol, f"__{_name}__", lambda self, function=_function: function(self.bare()))
