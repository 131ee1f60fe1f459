"""What the code of a model reads outside of the model: globals, closures, the environment, context variables."""

import collections
import contextvars
import functools
import inspect
import logging
import os
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

_DEPTH = 4  # how far functions are followed that functions name
_FOREIGN = ("torch", "numpy", "builtins", "typing", *sys.stdlib_module_names)  # packages whose code is not followed
_CONTAINERS = (list, dict, set, collections.deque, np.ndarray)
_KEPT = (*_CONTAINERS, int, float, str, bytes, torch.Tensor)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
_CLOSED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType,
    nn.Module, logging.Logger, property, staticmethod, classmethod, functools.cached_property, torch.jit.ScriptFunction,
)  # fmt: skip


class Variable(NamedTuple):
    """A variable outside of a model. `table[key]` is its value."""

    table: Any
    key: Any
    name: str  # for messages

    @property
    def value(self) -> Any:
        """Its present value; None if it has none, or none any more."""
        try:
            return self.table[self.key]
        except (KeyError, ValueError, AttributeError):
            return None


class Cell(dict[int, Any]):
    """A closure's cell as a table with one entry, 0."""

    def __init__(self, cell: types.CellType):
        super().__init__()
        self.source = cell

    def __getitem__(self, key: int) -> Any:
        return self.source.cell_contents

    def __setitem__(self, key: int, value: Any) -> None:
        self.source.cell_contents = value


class Attributes(dict[str, Any]):
    """The attributes of a class as a table."""

    def __init__(self, kind: type, names: Iterable[str]):
        super().__init__(dict.fromkeys(names))
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        return getattr(self.kind, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.kind, name, value)


class Context(dict[int, Any]):
    """A context variable as a table with one entry, 0."""

    def __init__(self, variable: "contextvars.ContextVar[Any]"):
        super().__init__()
        self.source = variable

    def __getitem__(self, key: int) -> Any:
        return self.source.get(None)

    def __setitem__(self, key: int, value: Any) -> None:
        self.source.set(value)


def variables(model: nn.Module) -> list[Variable]:
    """The variables that the forward passes of a model's own modules may read, with those of functions that they name.

    Code of torch, numpy and Python's library is not looked into; functions, classes and modules are no variables.
    """
    found: dict[tuple[int, Any], Variable] = {}
    seen, classes = set[types.FunctionType](), _classes(model)
    for function in _forwards(model, classes):
        for variable in _named_by(function, _DEPTH, seen):
            source = getattr(variable.table, "source", variable.table)  # a cell may be in several functions
            found.setdefault((id(source), variable.key), variable)
    above = dict.fromkeys(one for kind in classes for one in kind.__mro__ if not _is_foreign(one.__module__))
    for kind in above:
        names = [n for n, v in vars(kind).items() if isinstance(v, _KEPT) and not n.startswith("__")]
        table = Attributes(kind, names)
        found |= {(id(kind), name): Variable(table, name, f"{kind.__name__}.{name}") for name in names}
    return list(found.values())


def prints(model: nn.Module) -> bool:
    """Whether a forward pass of the model's own modules names `print`."""
    return any("print" in function.__code__.co_names for function in _forwards(model, _classes(model)))


def _classes(model: nn.Module) -> list[type]:
    """The classes of the model's own modules, not those of torch."""
    return [kind for kind in dict.fromkeys(map(type, model.modules())) if not _is_foreign(kind.__module__)]


def _forwards(model: nn.Module, classes: list[type]) -> Iterator[types.FunctionType]:
    """The functions that may run in a forward pass: `forward`, methods that it names, and functions on the modules."""
    for module in model.modules():
        for own in vars(module).values():
            if type(own) in _FUNCTIONS:
                inner = _inner(own)
                if isinstance(inner, types.FunctionType) and not _is_foreign(inner.__module__):
                    yield inner
    for kind in classes:
        yield from _methods(kind)


def _methods(kind: type) -> list[types.FunctionType]:
    """A class's own `forward` and `__call__`, and the methods that these name, directly or not."""
    methods, waiting = dict[str, types.FunctionType](), ["forward", "__call__"]
    while waiting:
        name = waiting.pop()
        method = inspect.getattr_static(kind, name, None)
        method = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
        method = inspect.unwrap(method) if callable(method) else method
        if name in methods or not isinstance(method, types.FunctionType) or _is_foreign(method.__module__):
            continue
        methods[name] = method
        waiting += method.__code__.co_names
    return list(methods.values())


def _named_by(function: types.FunctionType, depth: int, seen: set[types.FunctionType]) -> Iterator[Variable]:
    if function in seen:
        return
    seen.add(function)
    code = function.__code__
    held: list[tuple[Any, Any, str]]
    held = [(Cell(cell), 0, name) for cell, name in zip(function.__closure__ or (), code.co_freevars, strict=True)]
    names, known = _names(code), function.__globals__
    held += [(known, name, name) for name in names if name in known]
    held += [
        (function.__defaults__, i, f"an argument's default in {code.co_name}") for i in _kept(function.__defaults__)
    ]
    for table, key, name in held:
        try:
            value = table[key]
        except ValueError:  # a variable that has no value yet
            continue
        if isinstance(value, _FUNCTIONS):
            inner = _inner(value)
            if depth and isinstance(inner, types.FunctionType) and not _is_foreign(inner.__module__):
                own = vars(inner)  # `helper.calls += 1`
                yield from (Variable(own, n, f"{name}.{n}") for n, v in own.items() if isinstance(v, _KEPT))
                yield from _named_by(inner, depth - 1, seen)
        elif isinstance(value, types.ModuleType):
            yield from _of_module(value, names, depth, seen)
        elif isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, _CONTAINERS):
            yield Variable([value.__self__], 0, name)  # `note = notes.append`
        elif isinstance(value, contextvars.ContextVar):
            yield Variable(Context(value), 0, name)
        elif not isinstance(value, _CLOSED):
            yield Variable(table, key, name)


def _of_module(
    module: types.ModuleType, names: set[str], depth: int, seen: set[types.FunctionType]
) -> Iterator[Variable]:
    """What code that names a module and these attributes may read there."""
    if module is os:
        if names & {"environ", "getenv"}:
            yield Variable(vars(os), "environ", "os.environ")
        return
    if _is_foreign(module.__name__):
        return
    for name in names & vars(module).keys():
        value = vars(module)[name]
        if isinstance(value, types.FunctionType):
            if depth and not _is_foreign(value.__module__):
                yield from _named_by(value, depth - 1, seen)
        elif not isinstance(value, _CLOSED):
            yield Variable(vars(module), name, f"{module.__name__}.{name}")


def _kept(defaults: tuple[Any, ...] | None) -> list[int]:
    """Which of a function's defaults are containers: they live from call to call."""
    return [i for i, value in enumerate(defaults or ()) if isinstance(value, _CONTAINERS)]


def _names(code: types.CodeType) -> set[str]:
    """All names in a piece of code and in the functions that it makes."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _inner(value: Any) -> Any:
    """The function in a partial, a bound method, or a wrapper."""
    while isinstance(value, functools.partial):
        value = value.func
    return inspect.unwrap(getattr(value, "__func__", value))


def _is_foreign(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FOREIGN
