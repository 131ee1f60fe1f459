"""Guards on attributes: plain values on a model that a graph took as constants: `model.temperature = 0.5`."""

import functools
import types
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..passes.graph.walk import ATOMS, walk

_SINGLE = (np.generic, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_OWN = frozenset((*vars(nn.Module()), "training"))  # what every module has; modes are looked at elsewhere
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEPTH = 3  # how far objects on a module are followed: a list in a configuration in a configuration
_LONG = 16  # a list of more values is a log, no setting


class SettingsWarning(UserWarning):
    """A plain value on the model changed, and the model is captured again."""


class AttributeGuards:
    """The plain values and functions on the modules of a model, on their configurations, in their dicts and lists.

    torch's own layers are called as they are, so that theirs need no look, unless a captured graph looks into one.
    What a forward sets itself is none of them. All of it is looked at in every call, so that the loops are those of C.
    """

    modules: list[nn.Module]

    def __init__(self, model: nn.Module):
        self._model, self.ignored, self.opened = model, frozenset[tuple[str, str]](), frozenset[str]()
        self._look()

    def now(self) -> tuple[Any, ...]:
        """The values at this moment, and the type and place of the weights."""
        try:
            if [key for table, key, value in self._links if table[key] is not value]:
                self._look()
            values = [v if type(v) in ATOMS else _comparable(v) for table, get in self._tables for v in get(table)]
        except (KeyError, IndexError, AttributeError):  # one is gone
            self._look()
            return self.now()
        return (*values, *[(p.dtype, p.device) for p in self._ends])

    def learning(self) -> tuple[bool, ...]:
        """Which of the weights learn."""
        return tuple([p.requires_grad for p in self._weights])

    def moved(self) -> bool:
        """Whether modules were replaced, or hooks came or went, since this was last asked."""
        modules = list(chain.from_iterable(map(dict.values, self._children)))
        if modules == self._placed and list(map(len, self._hooks)) == self._hooked:
            return False
        self._look()
        return True

    def ignore(self, names: Iterable[tuple[str, str]]) -> None:
        """Look no more at some attributes: path of the module, and name."""
        if more := self.ignored.union(names) - self.ignored:
            self.ignored |= more
            self._look()

    def open(self, paths: Iterable[str]) -> None:
        """Look at some of torch's layers, too."""
        if more := self.opened.union(paths) - self.opened:
            self.opened |= more
            self._look()

    def _look(self) -> None:
        """Find all that is to be looked at."""
        self.modules = list(self._model.modules())
        self._children = [m._modules for m in self.modules if isinstance(m._modules, dict) and m._modules]
        self._placed = list(chain.from_iterable(map(dict.values, self._children)))
        opened = [m for m in self.modules if m._modules or not _is_torchs(m)]
        self._hooks = [vars(m)[name] for m in opened for name in _HOOKS if name in vars(m)]
        self._hooked = list(map(len, self._hooks))
        self._links: list[tuple[Any, Any, Any]] = []  # objects with values on them: table, key, object
        self._tables = [(table, itemgetter(*keys, keys[0])) for table, keys in self._plain_values()]
        self._weights = list(self._model.parameters())
        self._ends = self._weights[:1] + self._weights[1:][-1:]  # they move and change type together

    def _plain_values(self) -> Iterator[tuple[Any, list[Any]]]:
        """Dicts and lists, and which of their keys to look at."""
        opened, classes = dict[int, int](), set[int]()
        for path, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or (_is_torchs(module) and path not in self.opened):
                continue
            own = vars(module)
            names = [name for name in own if name not in _OWN and (path, name) not in self.ignored]
            tables = [own, *_tables_of_classes(type(module), classes)]
            for name in names:
                for table, key, value in walk(own[name], _table, _DEPTH, opened=opened):
                    if (below := _table(value)) is not None:
                        self._links.append((own, name, value) if table is None else (table, key, value))
                        tables.append(below)
            for table in tables:
                keys = names if table is own else list(table) if isinstance(table, dict) else range(len(table))
                if plain := [key for key in keys if _is_plain(table[key])]:
                    yield table, plain


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def looked_into(graph: fx.Graph) -> frozenset[str]:
    """Paths of torch's layers whose insides a graph holds instead of calling them."""
    paths = set()
    for node in graph.nodes:
        calls = list(node.meta.get("nn_module_stack", {}).values())
        for path, kind in calls[:-1] if node.op == "call_module" else calls:
            if kind.__module__.startswith("torch.nn."):
                paths.add(path)
    return frozenset(paths)


def _is_plain(value: Any) -> bool:
    return type(value) in ATOMS or isinstance(value, _SINGLE) or (type(value) is tuple and all(map(_is_plain, value)))


def _comparable(value: Any) -> Any:
    """Something that is unequal for another value."""
    if type(value) is tuple:
        return tuple(v if type(v) in ATOMS else _comparable(v) for v in value)
    if isinstance(value, np.generic):
        return type(value), value.tobytes()  # a nan is no other nan's equal, its bytes are
    return value if isinstance(value, _SINGLE) else type(value)


def _table(value: Any) -> Any:
    """The values that a dict, a list, or an object such as a configuration holds; None: it is not looked into."""
    if callable(value) or isinstance(value, torch.Tensor) or type(value) in ATOMS:
        return None
    table = value if type(value) in (dict, list) else getattr(value, "__dict__", None)
    return table if type(table) is dict or (type(table) is list and len(table) <= _LONG) else None


def _tables_of_classes(kind: type, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The numbers that a model's classes hold."""
    for one in kind.__mro__:
        if id(one) not in seen and not one.__module__.startswith(("torch.", "builtins", "typing")):
            seen.add(id(one))
            numbers = [k for k, v in vars(one).items() if type(v) in (bool, int, float) and not k.startswith("_")]
            if numbers:
                yield _ClassTable(one, numbers)


class _ClassTable(dict[str, Any]):
    """Reads attributes of a class, by their names."""

    def __init__(self, kind: type, names: list[str]):
        super().__init__(dict.fromkeys(names))
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        return getattr(self.kind, name)


def warn_changed() -> None:
    """Say that a plain value on the model is another one now."""
    warnings.warn(
        "a plain value on the model changed since it was captured, and it is captured again. If it changes often, keep "
        "it in a buffer, which graphs read anew in each call, or use capture='hooks'",
        SettingsWarning,
        stacklevel=2,
    )
