"""What graphs take for granted of a model's Python side, and users change: `model.temperature = 0.5` each epoch."""

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import nn

_ATOMS = frozenset((bool, int, float, str, type(None)))
_OWN = frozenset((*vars(nn.Module()), "training"))  # what every module has; modes are looked at elsewhere
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class SettingsWarning(UserWarning):
    """A plain value on the model changed, and the model is captured again."""


class Settings:
    """The plain values that hang on the modules of a model, on their configurations and in their dicts.

    torch's own layers are called as they are, so that theirs need no look. What a forward sets itself is none of them.
    All of it is looked at in every call, so that the loops are those of C.
    """

    modules: list[nn.Module]

    def __init__(self, model: nn.Module):
        self._model, self.ignored = model, frozenset[tuple[str, str]]()
        self._look()

    def now(self) -> tuple[Any, ...]:
        """The values at this moment, and the type and place of the weights."""
        try:
            found = [v if type(v) in _ATOMS else type(v) for held, get in self._held for v in get(held)]
        except KeyError:  # one is gone
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

    def _found(self) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """Dicts of attributes, and which of their names to look at."""
        seen = set[int]()
        for path, module in self._model.named_modules():
            if _is_torchs(module) or isinstance(module, torch.jit.ScriptModule):
                continue
            for held in (vars(module), *_opened(module, seen)):
                own = held is vars(module)
                names = [k for k, v in held.items() if type(v) in _ATOMS and not (own and k in _OWN)]
                if names := [k for k in names if not (own and (path, k) in self.ignored)]:
                    yield held, names


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _opened(module: nn.Module, seen: set[int]) -> Iterator[dict[str, Any]]:
    """The dicts on a module, and the attributes of objects on it such as a configuration, each once."""
    for name, value in list(vars(module).items()):
        if name in _OWN or id(value) in seen or callable(value) or isinstance(value, torch.Tensor):
            continue
        held = value if type(value) is dict else getattr(value, "__dict__", None)
        if type(held) is dict:
            seen.add(id(value))
            yield held


def warn_changed() -> None:
    """Say that a plain value on the model is another one now."""
    warnings.warn(
        "a plain value on the model changed since it was captured, and it is captured again. If it changes often, keep "
        "it in a buffer, which graphs read anew in each call, or use capture='hooks'",
        SettingsWarning,
        stacklevel=2,
    )
