"""Guards on attributes: plain values on a model that a graph took as constants: `model.temperature = 0.5`."""

import enum
import types
import warnings
from collections.abc import Iterable, Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..passes.graph.digest import TooLargeError, digest
from ..passes.graph.walk import ATOMS, walk
from ..passes.sandbox.outside import Attributes, variables

_SINGLE = (
    np.generic, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, enum.Enum, complex, range,
    torch.dtype, torch.device, torch.layout, torch.memory_format, Fraction, Decimal,
)  # fmt: skip
_KEPT_ON_CLASSES = (int, float, str, bytes, complex, tuple, list, dict, set, frozenset, np.ndarray, enum.Enum)
_OWN = frozenset((*vars(nn.Module()), "training"))  # what every module has; modes are looked at elsewhere
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEPTH = 3  # how far objects on a module are followed: a list in a configuration in a configuration
_FEW = 500  # values in the tables of one attribute
_LONG = 16  # longer lists, and whatever else the loops below do not cover, are looked at by their digests


class SettingsWarning(UserWarning):
    """A plain value on the model changed, and the model is captured again."""


class AttributeGuards:
    """The plain values and functions on the modules of a model, on their configurations and classes, in their dicts and
    lists, and in the variables outside that their code reads.

    torch's own layers are called as they are, so that theirs need no look, unless a captured graph looks into one.
    What a forward sets itself is none of them. All of it is looked at in every call, so that the loops are those of C;
    values of other kinds are looked at by their digests.
    """

    modules: list[nn.Module]
    unwatched: list[str]  # names of what holds too much to be looked at in every call

    def __init__(self, model: nn.Module):
        self._model, self.ignored, self.opened = model, frozenset[tuple[str, str]](), frozenset[str]()
        self._look()

    def now(self) -> tuple[Any, ...]:
        """The values at this moment, and the type and place of the weights."""
        try:
            if [key for table, key, value in self._links if table[key] is not value]:
                self._look()
            if list(map(len, self._held)) != self._lengths:  # something is there that was not
                self._look()
            values = [v if type(v) in ATOMS else _comparable(v) for table, get in self._tables for v in get(table)]
            digests = [digest(table[key]) for table, key in self._digested]
        except (KeyError, IndexError, AttributeError, ValueError):  # one is gone, or too large now
            self._look()
            return self.now()
        return (*values, *digests, *[(p.dtype, p.device) for p in self._ends])

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
        self._held: list[Any] = []  # dicts and lists that may grow
        self._digested: list[tuple[Any, Any]] = []  # what is looked at by its digest: table, key
        self.unwatched = []
        self._tables = [(table, itemgetter(*keys, keys[0])) for table, keys in self._plain_values()]
        self._lengths = list(map(len, self._held))
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
            yield from self._of_table(own, names, path, opened, classes)
            for table in _tables_of_classes(type(module), classes):
                yield from self._of_table(table, list(table), table.kind.__name__, opened, classes)
        for variable in variables(self._model):
            yield from self._of_table(variable.table, [variable.key], variable.name, opened, classes)

    def _of_table(
        self, table: Any, keys: list[Any], owner: str, opened: dict[int, int], classes: set[int]
    ) -> Iterator[tuple[Any, list[Any]]]:
        """What to look at in some entries of a table: values that are plain, tables below, and digests of the rest."""
        tables = [table]
        for key in keys:
            value = table[key]
            if isinstance(value, torch.Tensor | nn.Module) or _is_plain(value) or id(value) in opened:
                continue
            if hasattr(type(value), "__next__"):
                continue  # an iterator: no graph is made of a call that takes from one
            if not _is_covered(value, _DEPTH, [_FEW]):
                opened[id(value)] = _DEPTH
                self._digest(table, key, f"{owner}.{key}" if owner and owner != key else str(key))
                continue
            for holder, name, inner in walk(value, _table, _DEPTH, opened=opened):
                if (below := _table(inner)) is not None:
                    self._links.append((table, key, inner) if holder is None else (holder, name, inner))
                    self._held.append(below)
                    tables += [below, *_tables_of_classes(type(inner), classes)]
        for one in tables:
            known = keys if one is table else list(one) if isinstance(one, dict) else range(len(one))
            if plain := [key for key in known if _is_plain(one[key])]:
                yield one, plain

    def _digest(self, table: Any, key: Any, name: str) -> None:
        try:
            digest(table[key])
        except TooLargeError:
            self.unwatched.append(name)
        else:
            self._digested.append((table, key))


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


def _is_covered(value: Any, left: int, budget: list[int]) -> bool:
    """Whether a few tables of `_table` hold all that a value is made of. `budget`: how many there may still be."""
    budget[0] -= 1
    if _is_plain(value) or isinstance(value, torch.Tensor | nn.Module):
        return not isinstance(value, types.FunctionType) or not value.__closure__
    table = _table(value)
    if table is None or left == 0 or budget[0] < 0:
        return False
    if table is not value and isinstance(value, dict | list | tuple | set | frozenset):  # of a class of its own
        return False
    if table is not value and any("__slots__" in vars(kind) for kind in type(value).__mro__[:-1]):
        return False
    return all(_is_covered(held, left - 1, budget) for held in (table.values() if isinstance(table, dict) else table))


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


def _tables_of_classes(kind: type, seen: set[int]) -> Iterator[Attributes]:
    """The values that a class and the classes above it hold, those of Python and torch aside."""
    for one in kind.__mro__:
        if id(one) not in seen and not one.__module__.startswith(("torch.", "builtins", "typing", "collections")):
            seen.add(id(one))
            names = [k for k, v in vars(one).items() if not k.startswith("__") and isinstance(v, _KEPT_ON_CLASSES)]
            if names:
                yield Attributes(one, names)


def warn_changed() -> None:
    """Say that a plain value on the model is another one now."""
    warnings.warn(
        "a plain value on the model changed since it was captured, and it is captured again. If it changes often, keep "
        "it in a buffer, which graphs read anew in each call, or use capture='hooks'",
        SettingsWarning,
        stacklevel=2,
    )
