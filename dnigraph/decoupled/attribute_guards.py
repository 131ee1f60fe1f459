"""What graphs take for granted of a model's Python side, and users change: `model.temperature = 0.5` each epoch."""

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

_ATOMS = frozenset((bool, int, float, str, type(None)))
_SINGLE = (np.generic, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
_OWN = frozenset((*vars(nn.Module()), "training"))  # what every module has; modes are looked at elsewhere
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEPTH = 4  # how far configurations are followed
_LONG = 16  # a list of more values is a log, no setting


class SettingsWarning(UserWarning):
    """A plain value on the model changed, and the model is captured again."""


class Settings:
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
            found = [v if type(v) in _ATOMS else _told(v) for held, get in self._held for v in get(held)]
        except (KeyError, IndexError, AttributeError):  # one is gone
            self._look()
            return self.now()
        return (*found, *[(p.dtype, p.device) for p in self._ends])

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
        self.modules = list(self._model.modules())
        self._children = [m._modules for m in self.modules if isinstance(m._modules, dict) and m._modules]
        self._placed = list(chain.from_iterable(map(dict.values, self._children)))
        opened = [m for m in self.modules if m._modules or not _is_torchs(m)]
        self._hooks = [vars(m)[name] for m in opened for name in _HOOKS if name in vars(m)]
        self._hooked = list(map(len, self._hooks))
        self._held = [(held, itemgetter(*names, names[0])) for held, names in self._found()]
        self._weights = list(self._model.parameters())
        self._ends = self._weights[:1] + self._weights[1:][-1:]

    def _found(self) -> Iterator[tuple[Any, list[Any]]]:
        """Dicts and lists, and which of their keys to look at."""
        seen = set[int]()
        self._links: list[tuple[Any, Any, Any]] = []
        for path, module in self._model.named_modules():
            if isinstance(module, torch.jit.ScriptModule) or (_is_torchs(module) and path not in self.opened):
                continue
            own = vars(module)
            names = [k for k in own if k not in _OWN and (path, k) not in self.ignored]
            links = list(_below(own, names, seen, _DEPTH))
            self._links += links
            below = [v if type(v) in (dict, list) else vars(v) for _, _, v in links]
            for held in (own, *below, *_classes(type(module), seen)):
                if keys := [k for k in (names if held is own else _keys(held)) if _is_plain(held[k])]:
                    yield held, keys


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def looked_into(graph: fx.Graph) -> frozenset[str]:
    """The layers of torch that a graph does not call as they are, but has what they do."""
    return frozenset(path for node in graph.nodes for path in _around(node))


def _around(node: fx.Node) -> Iterator[str]:
    calls = list(node.meta.get("nn_module_stack", {}).values())
    for path, kind in calls[:-1] if node.op == "call_module" else calls:
        if kind.__module__.startswith("torch.nn."):
            yield path


def _is_plain(value: Any) -> bool:
    return type(value) in _ATOMS or isinstance(value, _SINGLE) or (type(value) is tuple and all(map(_is_plain, value)))


def _told(value: Any) -> Any:
    """What is to be remembered of a value, so that another one shows."""
    if type(value) is tuple:
        return tuple(v if type(v) in _ATOMS else _told(v) for v in value)
    if isinstance(value, np.generic):
        return type(value), value.tobytes()  # a nan is no other nan's equal, its bytes are
    return value if isinstance(value, _SINGLE) else type(value)


def _below(table: Any, keys: Iterable[Any], seen: set[int], depth: int) -> Iterator[tuple[Any, Any, Any]]:
    """What dicts, lists and objects such as a configuration hold in turn, each once: holder, key, and what it holds."""
    for key in keys:
        value = table[key]
        if type(value) in _ATOMS or id(value) in seen or callable(value) or isinstance(value, torch.Tensor):
            continue
        held = value if type(value) in (dict, list) else getattr(value, "__dict__", None)
        if type(held) not in (dict, list) or (type(held) is list and len(held) > _LONG):
            continue
        seen.add(id(value))
        yield table, key, value
        if depth > 1:
            yield from _below(held, _keys(held), seen, depth - 1)


def _keys(held: Any) -> Iterable[Any]:
    return list(held) if isinstance(held, dict) else range(len(held))


def _classes(kind: type, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The numbers that a model's classes hold."""
    for one in kind.__mro__:
        if id(one) not in seen and not one.__module__.startswith(("torch.", "builtins", "typing")):
            seen.add(id(one))
            numbers = [k for k, v in vars(one).items() if type(v) in (bool, int, float) and not k.startswith("_")]
            if numbers:
                yield _OfClass(one, numbers)


class _OfClass(dict[str, Any]):
    """A look at the attributes of a class."""

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
