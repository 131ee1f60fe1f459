"""Hooks for one call: see, and perhaps replace, the tensors that enter and leave the modules of an untouched model."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.hooks import RemovableHandle

from ..graph.mark import MarkListener
from ..graph.nodes import NOTHING_LEARNS
from ..sandbox.journal import undone


@dataclass(frozen=True)
class Site:
    """One tensor at the border of a module call, or at a mark."""

    path: str  # the module's path; the name of the mark
    call: int  # 1 for the first call of this module in a forward pass
    side: str  # "enter", "leave" or "mark"
    leaf: int = 0  # its number among the tensors there

    @property
    def key(self) -> str:
        """What cuts call this module call: `layers.3`, `layers.3@2`."""
        return self.path if self.call == 1 else f"{self.path}@{self.call}"


Place = tuple[str, str]  # path and side


class Watch:
    """What is done with the tensors that pass some places of a model in one call of it.

    Args:
        handle: takes a site and the tensor there, and returns the tensor that goes on.
        places: where; `None`: everywhere.
        enter: told the path, the module and the number of its call before a call's inputs are handled.
        leave: told the path before a call's results are handled.
    """

    def __init__(
        self,
        model: nn.Module,
        handle: Callable[[Site, Tensor], Tensor],
        places: Collection[Place] | None = None,
        enter: Callable[[str, nn.Module, int], None] | None = None,
        leave: Callable[[str], None] | None = None,
    ):
        self.model, self.handle, self.places, self.enter, self.leave = model, handle, places, enter, leave
        self.calls, self.thread = Counter[Place](), threading.get_ident()
        self._handles: list[RemovableHandle] = []
        self.passed_by: dict[str, str] = {}  # paths of modules that ran and handed on nothing to handle, and why

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the model inside the block, for this thread; outside, none of them is left.

        Only tensors through which a gradient comes back are handled. On the way in those that are arguments, or in
        tuples of them; on the way out also those in lists and dicts. An object of another class is not opened: the
        model may keep it, as it does caches.
        """
        with ExitStack() as stack, undone(self._detach):
            for path, module in self.model.named_modules():
                if not path or isinstance(module, torch.jit.ScriptModule):
                    continue
                if self.places is None or (path, "enter") in self.places:
                    hook = partial(self._entering, path)
                    self._handles.append(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
                if self.places is None or (path, "leave") in self.places:
                    self._handles.append(module.register_forward_hook(partial(self._leaving, path)))
            if self.places is None or any(side == "mark" for _, side in self.places):
                stack.enter_context(MarkListener(self._marked))
            yield

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if sys.exc_info()[0] is not None:  # perhaps one was registered, and its handle never came
            for module in self.model.modules():
                for table in (module._forward_pre_hooks, module._forward_hooks):
                    for key in [key for key, hook in table.items() if self._is_own(hook)]:
                        del table[key]
                        module._forward_pre_hooks_with_kwargs.pop(key, None)

    def _is_own(self, hook: Any) -> bool:
        return isinstance(hook, partial) and getattr(hook.func, "__self__", None) is self

    def _entering(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        number = self._count(path, "enter")
        passed = self._handled(Site(path, number, "enter"), (*args, *kwargs.values()), deep=False)
        if self.enter:
            self.enter(path, module, number)
        return passed[: len(args)], dict(zip(kwargs, passed[len(args) :], strict=True))

    def _leaving(self, path: str, module: nn.Module, args: Any, result: Any) -> Any:
        if threading.get_ident() != self.thread:
            return None
        if self.leave:
            self.leave(path)
        return self._handled(Site(path, self._count(path, "leave"), "leave"), result, deep=True)

    def _marked(self, value: Any, name: str | None) -> Any:
        name = name or "cut"
        if self.places is not None and (name, "mark") not in self.places:
            return value
        return self._handled(Site(name, self._count(name, "mark"), "mark"), value, deep=True)

    def _count(self, path: str, side: str) -> int:
        self.calls[path, side] += 1
        return self.calls[path, side]

    def _handled(self, at: Site, value: Any, deep: bool) -> Any:
        if (inside := _where_gradients_do_not_pass()) is not None:
            self.passed_by.setdefault(at.path, f"ran {inside}")
            return value
        passed: dict[int, Tensor] = {}  # by the id of what came; one tensor given twice stays one

        def change(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                if at.side == "leave" and tensor.is_floating_point():
                    self.passed_by.setdefault(at.path, NOTHING_LEARNS)
                return tensor
            if tensor.is_nested and tensor.layout is not torch.jagged:
                self.passed_by.setdefault(at.path, "hands on nested tensors that are not of layout=torch.jagged")
                return tensor
            if id(tensor) not in passed:
                handle = partial(_by_rows, self.handle) if tensor.is_nested else self.handle
                passed[id(tensor)] = handle(Site(at.path, at.call, at.side, len(passed)), tensor)
            return passed[id(tensor)]

        return _mapped(value, change, deep)


def _where_gradients_do_not_pass() -> str | None:
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside a torch.func transform, where tensors are not those that autograd sees"
    if forward_ad._current_level >= 0:
        return "inside a level of forward-mode AD"
    if not torch.is_grad_enabled():
        return (
            "without gradients: under torch.no_grad, or in a checkpoint, which can be cut with use_reentrant=False only"
        )
    return None


def _by_rows(handle: Callable[[Site, Tensor], Tensor], site: Site, tensor: Tensor) -> Tensor:
    """Handle the rows of a jagged tensor, one below the other, and nest them again."""
    jagged: Any = tensor  # the types of its subclass are not known
    rows, dimension = handle(site, tensor.values()), jagged._ragged_idx
    longest = {"min_seqlen": jagged._maybe_min_seqlen, "max_seqlen": jagged._maybe_max_seqlen}  # padding goes by these
    nested: Tensor = torch.nested.nested_tensor_from_jagged(
        rows, jagged.offsets(), jagged.lengths(), dimension, **longest
    )
    return nested


def _mapped(value: Any, change: Callable[[Tensor], Tensor], deep: bool) -> Any:
    """The value with its tensors changed. Lists and dicts stay the objects that they are: somebody may hold them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [_mapped(item, change, deep) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if deep and isinstance(value, list | dict):
        for key, item in enumerate(value) if isinstance(value, list) else list(value.items()):
            if (new := _mapped(item, change, deep)) is not item:
                value[key] = new
    return value
