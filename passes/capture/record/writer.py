"""The graph of a run while it is being written: which node made which object, and how a call is spelled."""

import contextlib
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx

from ...errors import CaptureError
from ...graph.nodes import Call, Mode, guard, leaf_of
from ...graph.own_names import constant_name
from ...graph.pytrees import flatten, opens, rebuild, take_apart
from .symbols import Int, is_live, is_symbol, reachable

# What fx can write into its code as it is.
PLAIN = (
    fx.Node, int, float, bool, str, complex, type(None), type(...),
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
OPERATORS = {
    f"__{name}__": getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow matmul and_ or_ xor neg invert lt le gt ge eq ne "
    "iadd isub imul itruediv getitem".split()
}
_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGES = _TORCH.removesuffix("torch" + os.sep)
_HERE = os.path.dirname(__file__) + os.sep


class GraphWriter:
    """Writes the run of a model into `graph`.

    `names`: id -> path of every tensor that the model owned before the run. `hashable`: sizes can serve as keys, and
    are guarded when they do.
    """

    def __init__(self, names: dict[int, str], hashable: bool = False):
        self.graph, self.names, self.hashable = fx.Graph(), names, hashable
        self.constants: dict[str, torch.Tensor] = {}
        self.entry = Mode.now()
        self._thread = threading.get_ident()
        self.open, self._asides = True, 0  # open: until the run is over
        self.reported = False  # whether torch reports the call that runs now
        self.unreported: str | None = None  # where an operation ran on values of this run that no call reports
        self._stack: list[tuple[str, str, type]] = []  # running modules: key (path@2 for a second call), path, class
        self._calls: dict[str, int] = {}  # path -> how often the module was called
        self._nodes: dict[int, fx.Node] = {}  # id of a live object -> the node that made it
        self._alive: list[Any] = []  # keeps the ids of tuples unique; tensors may be freed while the run goes on
        self._watched: dict[int, weakref.ref[torch.Tensor]] = {}  # id of a tensor -> what tells when it is gone
        self._sizes: dict[tuple[Any, ...], Int] = {}
        self._front: fx.Node | None = None  # the last node of the front: inputs, then parameters and constants

    @property
    def listening(self) -> bool:
        """Whether the running code is the model's: on the recording's thread, not in a call that is written."""
        return self.open and not self._asides and threading.get_ident() == self._thread

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Write nothing of what runs in the block."""
        self._asides += 1
        try:
            yield
        finally:
            self._asides -= 1

    @contextlib.contextmanager
    def in_module(self, path: str, kind: type) -> Iterator[None]:
        """Write what runs in the block as part of one call of a module."""
        count = self._calls[path] = self._calls.get(path, 0) + 1
        self._stack.append((path if count == 1 else f"{path}@{count}", path, kind))
        try:
            yield
        finally:
            self._stack.pop()

    def release(self) -> None:
        """Free all that the run made. Sizes may outlive it in caches of libraries, and they hold their writer."""
        self._nodes.clear()
        self._alive.clear()
        self._watched.clear()
        self._sizes.clear()

    def where(self) -> str:
        """The module that is running, for messages."""
        return f"'{self._stack[-1][1]}'" if self._stack and self._stack[-1][1] else "the model"

    def inputs(self, names: list[str], values: list[Any]) -> None:
        """Write the tensors among the inputs, before any other node. One given twice must be so in every replay."""
        twins = []
        for name, value in zip(names, values, strict=True):
            if isinstance(value, torch.Tensor):
                node = self._front = self.graph.placeholder(name)
                if (same := self._nodes.get(id(value))) is not None:
                    twins.append((same, node))
                else:
                    self.bind(value, node)
        for pair in twins:
            self.guard(self.call(operator.is_, pair), True)

    def bind(self, value: Any, node: fx.Node) -> None:
        """Remember that `node` makes `value`; what a container holds is made by a `getitem` on it."""
        if isinstance(value, PLAIN):
            return  # None and small numbers are shared objects: an id says nothing about who made them
        if isinstance(value, torch.Tensor | tuple):  # what a list or a dict holds may be another thing soon
            self._remember(value, node)
        if isinstance(value, torch.Tensor):
            return
        if type(value) in (list, dict) or isinstance(value, tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if not isinstance(item, PLAIN):
                    self.bind(item, self.call(operator.getitem, (node, key)))
        elif opens(value):
            for i, leaf in enumerate(flatten(value)[0]):
                if isinstance(leaf, torch.Tensor):
                    self.bind(leaf, self.call(leaf_of, (node, i)))

    def _remember(self, value: "torch.Tensor | tuple[Any, ...]", node: fx.Node) -> None:
        """Remember that `node` makes `value` while `value` lives: afterwards another object may have its id.

        A tensor is not kept alive. While autograd or a view holds it, torch hands out the same object again.
        """
        key, nodes, watched = id(value), self._nodes, self._watched
        nodes[key] = node
        if not isinstance(value, torch.Tensor):
            self._alive.append(value)
            return

        def forget(_: object) -> None:
            nodes.pop(key, None)
            watched.pop(key, None)

        watched[key] = weakref.ref(value, forget)

    def pin(self, value: Any, node: fx.Node) -> None:
        """Guard the bare numbers that an opaque call returned beside its tensors."""
        if isinstance(value, int | float | str):
            self.guard(node, value)
        elif type(value) in (list, dict) or isinstance(value, tuple):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, int | float | str | list | tuple | dict):
                    self.pin(item, self.call(operator.getitem, (node, key)))

    def node_of(self, value: Any) -> fx.Node | None:
        """The node that made `value` in this run, or reads it from the model."""
        return self._nodes.get(id(value))

    def computed(self, value: Any) -> fx.Node | None:
        """The node that computed `value` from the inputs, as far as one knows: no parameter nor a constant."""
        node = self._nodes.get(id(value))
        return None if node is None or node.op == "get_attr" else node

    def known(self, tensor: torch.Tensor) -> fx.Node | None:
        """The node of a tensor that may differ in the next call (computed, or owned by the model); None: a constant."""
        return self.attribute(tensor) if id(tensor) in self.names else self._nodes.get(id(tensor))

    def attribute(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a parameter, a buffer, or a tensor that was there before the run."""
        if (node := self._nodes.get(id(tensor))) is not None:
            return node
        if tensor.grad_fn is not None:
            tensor_in_words = f"a tensor of shape {tuple(tensor.shape)} in {self.where()}"
            raise CaptureError([f"{tensor_in_words} was made by a call that torch does not report"])
        name = self.names.get(id(tensor))
        if name is None:
            name = constant_name(len(self.constants), self.names.values())
            self.constants[name] = tensor
        with self.graph.inserting_after(self._front):
            self._front = self.graph.get_attr(name)
        self.bind(tensor, self._front)
        return self._front

    def size(self, node: fx.Node, method: Any, value: int, *args: Any) -> Int:
        """The symbol of one size of a tensor; the same one each time it is asked for."""
        key = (node, method, args)
        symbol = self._sizes.get(key)
        if symbol is None or symbol.value != value:  # resized in place
            symbol = self._sizes[key] = Int(self, value, method, node, *args)
        return symbol

    def arguments(self, value: Any) -> Any:
        """The arguments of a call with nodes in the place of tensors and symbols."""
        return rebuild(value, self._argument)  # a container as it is now: the model may change a list later

    def _argument(self, value: Any) -> Any:
        if (node := self._nodes.get(id(value))) is not None:
            return node
        if is_symbol(value):
            return value.write() if value.writer is self else value.value
        if isinstance(value, torch.Tensor):
            return self.attribute(value)
        if isinstance(value, np.generic):
            return value.item()  # a numpy float is a float, and prints as another thing
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, torch.Generator) and value is not torch.default_generator:
            raise CaptureError([f"{self.where()} draws from a torch.Generator of its own; use torch's default one"])
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            node = self.call(type(value), tuple(map(self.arguments, value)))
            self._remember(value, node)
            return node
        if not self.reaches(value):  # a function or an object
            return value
        if callable(value):
            raise CaptureError([f"{self.where()} hands torch a function that holds tensors or sizes of this call"])
        live, tree = take_apart(value, is_live)  # it is built anew in every replay
        return self.call(Call(tree.build), (list(map(self.arguments, live)),))

    def reaches(self, value: Any) -> bool:
        """Whether a value holds tensors or symbols that were computed in this run, in its fields or in its closure."""
        return any(v.writer is self if is_symbol(v) else self.computed(v) is not None for v in reachable(value))

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any = None) -> fx.Node:
        """Write the call of a function whose arguments are nodes already."""
        return self.placed(self.graph.call_function(function, tuple(args), kwargs or {}))

    def guard(self, node: fx.Node, expected: Any) -> None:
        """Write that Python looked at a node and found `expected`."""
        if isinstance(expected, torch.Tensor):
            with self.aside():
                expected = self.attribute(expected.clone())
        self.call(guard, (node, expected, _caller()))

    def write(self, function: Callable[..., Any], args: Any, kwargs: Any, opaque: bool = False) -> fx.Node:
        """Write the call of a torch function in the plainest form that fx has for it."""
        name, args, kwargs = getattr(function, "__name__", "call"), self.arguments(tuple(args)), self.arguments(kwargs)
        mode = Mode.now()
        if opaque or mode != self.entry or not _plain((args, kwargs)):
            return self._spelled_out(function, mode, args, kwargs)
        if name in OPERATORS and not kwargs:
            return self.call(OPERATORS[name], args)
        if getattr(torch.Tensor, name, None) == function and args and isinstance(args[0], fx.Node):
            return self.placed(self.graph.call_method(name, args, kwargs))
        if getattr(function, "__module__", "") == "torch._tensor":
            function = Call(function)
        return self.call(function, args, kwargs)

    def _spelled_out(self, function: Callable[..., Any], mode: Mode, args: Any, kwargs: Any) -> fx.Node:
        if _plain((args, kwargs)):
            return self.call(Call(function, mode, self.entry), args, kwargs)
        nodes: list[fx.Node] = []

        def hole(value: Any) -> Any:
            if not isinstance(value, fx.Node):
                return value
            nodes.append(value)
            return fx.Node

        slots = rebuild((args, kwargs), hole)
        return self.call(Call(function, mode, self.entry, slots), tuple(nodes))

    def placed(self, node: fx.Node) -> fx.Node:
        """The node with the module calls that it belongs to."""
        node.meta["nn_module_stack"] = {key: (path, kind) for key, path, kind in self._stack if path}
        return node


def _plain(value: Any) -> bool:
    """Whether fx can write a value into its code."""
    strange: list[Any] = []
    rebuild(value, lambda leaf: None if isinstance(leaf, PLAIN) else strange.append(leaf))
    return not strange


def _caller() -> str:
    """The file and line of the model that is running, outside torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith((_HERE, _TORCH)):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(_PACKAGES)}:{frame.f_lineno}"
