"""The language of captured graphs: what their nodes may call beside torch, and what is written on them.

The nodes are those of fx. This library adds the functions in `OURS`, and `Call` for what fx cannot spell.
`node.meta` is the blackboard of the passes: a capture rung writes on it, then `annotate`, `node_seconds` and `split`;
all that follow read. `NodeMeta` lists its keys.
"""

import contextlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from ..errors import CaptureError, GuardMiss
from .equality import equal_tensors
from .mark import cut
from .pytrees import flatten, rebuild

NOTHING_LEARNS = "hands on values that carry no gradient: nothing below it learns, so there is nothing to decouple"
AUTOCAST_DEVICES = ("cpu", "cuda")


class NodeMeta(TypedDict, total=False):
    """The keys of `node.meta`: what each holds │ who writes it │ who reads it. Each is there only where it applies."""

    nn_module_stack: dict[str, tuple[str, type]]  # calls around it, outermost first: "layers.3@2" │ rungs │ cuts, plan
    # Of the tensor that the node makes, as one run on the example shows it:
    shape: tuple[int, ...]  # │ annotate │ plan, cuts, guards
    dtype: torch.dtype  # │ annotate │ plan, cuts, guards, boundaries
    device: torch.device  # │ annotate │ boundaries
    bytes: int  # │ annotate │ plan, cuts
    gradient: bool  # it requires grad; of a container: something in it does │ annotate │ plan, cuts
    container: bool  # no tensor, but a tuple, list or dict of tensors │ annotate │ plan
    storage: int  # the memory that it lives in: views share it │ annotate │ plan
    batch_dim: int | None  # which dimension is as long as the batch of the first input │ annotate │ boundaries
    channels_first: bool  # [batch, channels, positions], no [batch, tokens, features] │ annotate │ boundaries
    # Of what the node does:
    writes: tuple[int, ...]  # the memories that it changes in place │ annotate │ plan
    random: bool  # it draws random numbers │ annotate │ plan
    flops: int  # in one forward run; a multiply-add counts 2 │ annotate │ plan, cuts, guards
    seconds: float  # in one forward run │ node_seconds │ cuts
    passed_by: dict[str, str]  # of the output: modules that ran where nothing can be cut, and why │ module_graph │ cuts
    parameters: tuple[tuple[str, int, bool], ...]  # that it uses: name, scalars, trained │ annotate │ plan, decoupled
    buffers: tuple[str, ...]  # paths of those of its module, which it may change │ annotate │ plan
    # Of nodes that stand for something outside of their graph:
    site: Any  # the border of a module call, a `Site` │ module_graph │ decoupled
    position: int  # the place of an input or a weight among the arguments of Dynamo's graph │ dynamo_graph │ lift
    value: str  # in the top graph: the node of the captured graph whose value this is │ split │ boundary_nodes
    part: str  # in the top graph: the part that is called here │ split │ boundary_nodes, lift
    boundary: str  # in the top graph: the crossing that is handed over here │ boundary_nodes │ boundary_nodes


@dataclass(frozen=True)
class Mode:
    """Grad mode and autocast state of running code."""

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]  # device type, enabled, dtype

    @classmethod
    def now(cls) -> "Mode":
        """The mode at this moment. The dtype counts only where autocast is on."""
        states = []
        for device in AUTOCAST_DEVICES:
            enabled = torch.is_autocast_enabled(device)
            states.append((device, enabled, torch.get_autocast_dtype(device) if enabled else torch.float32))
        return cls(torch.is_grad_enabled(), tuple(states))

    def set(self) -> None:
        """Set it, for good."""
        torch.set_grad_enabled(self.grad)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            if enabled:
                torch.set_autocast_dtype(device, dtype)

    def enter(self, outside: "Mode", stack: contextlib.ExitStack) -> None:
        """Set what differs from the mode outside until the stack closes."""
        if self.grad != outside.grad:
            stack.enter_context(torch.set_grad_enabled(self.grad))
        for state, around in zip(self.autocast, outside.autocast, strict=True):
            if state != around:
                stack.enter_context(torch.autocast(state[0], dtype=state[2], enabled=state[1]))


def numbered(key: str) -> tuple[str, int]:
    """The path and the number of a call: ("layers.3", 2) of "layers.3@2". No number: 0. A path may hold an @."""
    path, at, number = key.rpartition("@")
    return (path, int(number)) if at and number.isdecimal() else (key, 0)


class Call:
    """A function with the mode it ran under and, where fx cannot spell them, its arguments with `fx.Node` as holes."""

    def __init__(
        self,
        function: Callable[..., Any],
        mode: Mode | None = None,
        outside: Mode | None = None,
        slots: Any = None,
    ):
        self.function, self.mode, self.outside, self.slots = function, mode, outside, slots
        owner = getattr(function, "__self__", None)
        name = owner.__name__ if inspect.isclass(owner) else getattr(function, "__name__", "call").strip("_")
        self.__name__ = self.__qualname__ = name if name.isidentifier() else "call"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.slots is not None:
            feed = iter(args)
            args, kwargs = rebuild(self.slots, lambda v: next(feed) if v is fx.Node else v)
        if self.mode is None or self.outside is None:
            return self.function(*args, **kwargs)
        with contextlib.ExitStack() as stack:
            self.mode.enter(self.outside, stack)
            return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Call":
        return self  # a value: nothing in it changes


def held_modules(node: fx.Node) -> list[nn.Module]:
    """The modules that a node hands to an autograd function, which runs them by itself."""
    function = getattr(node.target, "function", node.target)
    owner, held = getattr(function, "__self__", None), list[nn.Module]()
    if node.op == "call_function" and isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        given = (getattr(node.target, "slots", None), node.args, node.kwargs)
        rebuild(given, lambda value: held.append(value) if isinstance(value, nn.Module) else None)
    return held


class SizeCheck:
    """A function that tells from the sizes of inputs whether a graph holds for them: a guard on it looks at no data."""


def guard(value: Any, expected: Any, where: str = "") -> None:
    """Stand in the graph where Python, at line `where`, looked at `value` and found `expected`.

    Raises:
        GuardMiss: the value is another one now.
    """
    if isinstance(value, torch.Tensor):
        if not equal_tensors(value, torch.as_tensor(expected).to(value.device)):
            what = f"other numbers in a tensor of {tuple(value.shape)}"
            raise GuardMiss(f"this graph was recorded for {what}: see {where}")
    elif not (value == expected or (value != value and expected != expected)):
        raise GuardMiss(f"this graph was recorded for {expected}, and finds {value}: see {where}")


def set_attribute(tensor: torch.Tensor, field: str, value: Any) -> torch.Tensor:
    """`tensor.field = value` as an expression, so that later readers depend on it."""
    setattr(tensor, field, value)
    return tensor


def set_item(tensor: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """`tensor[index] = value` as an expression, so that later readers depend on it."""
    tensor[index] = value
    return tensor


def leaf_of(value: Any, i: int) -> Any:
    """The i-th leaf of a nested value of any class."""
    return flatten(value)[0][i]


def keep(module: nn.Module, name: str, value: Any) -> None:
    """`module.name = value`, as the model does it in its forward."""
    setattr(module, name, value)


def keep_buffer(module: nn.Module, name: str, persistent: bool, value: Any) -> None:
    """`module.register_buffer(name, value, persistent)`, as the model does it in its forward.

    A larger one that begins with it stays: models that keep tables for the longest sequence so far cut them to size.
    """
    table = module._buffers.get(name)
    larger = table is not None and table.numel() > value.numel() and table.dim() == value.dim()
    if larger and torch.equal(table[tuple(map(slice, value.shape))], value):  # type: ignore[index]  # it is there
        return
    module._buffers[name] = value
    module._non_persistent_buffers_set.discard(name) if persistent else module._non_persistent_buffers_set.add(name)


def event(*read: Any) -> None:
    """Stand in a module graph for a tensor at the border of a module call. It is not run."""
    raise CaptureError(["the graph of the hooks rung only says what feeds what; it cannot be run"])


def checkpointed(body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`torch.utils.checkpoint` in place of Dynamo's node for it, which draws new random numbers when it runs again."""
    return checkpoint(body, *args, **{**kwargs, "use_reentrant": False})


SIDE_EFFECTS = (guard, set_attribute, set_item, keep, keep_buffer)
OURS = frozenset([*SIDE_EFFECTS, cut, leaf_of, event, checkpointed])

for _function in SIDE_EFFECTS:
    fx.node.has_side_effect(_function)  # dead code elimination leaves them, though nobody reads their value
