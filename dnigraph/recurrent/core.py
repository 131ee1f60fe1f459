"""One interface for all step modules: a window in, its outputs and last state out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..decoupled.module import DecoupledModule
from .recurrent_error import RecurrentError

Initial = Callable[[int], Any]  # takes a number of sequences, returns their first state


class Core(nn.Module, ABC):
    """Runs a user's module over a window.

    Shapes: every tensor of x, and of the output, is [time, batch, ...], or [batch, time, ...] where `batch_first`.

    Attributes:
        bounded: for each tensor of the state, whether it stays within [-1, 1]; None: unknown.
    """

    bounded: tuple[bool, ...] | None = None

    def __init__(self, module: nn.Module, readout: nn.Module | None, batch_first: bool) -> None:
        super().__init__()
        self.module, self.readout, self.batch_first = module, readout, batch_first
        self._decoupled = [
            m for m in module.modules() if isinstance(m, DecoupledModule)
        ]  # in a list, so that it is not registered as a submodule twice

    @property
    def time(self) -> int:
        """The axis of time in inputs and outputs."""
        return int(self.batch_first)

    def labelled(self, label: Any) -> AbstractContextManager[Any]:
        """A block in which decoupled models inside the module see the label."""
        if label is None or not self._decoupled:
            return nullcontext()
        stack = ExitStack()
        for model in self._decoupled:
            stack.enter_context(model.conditioned(label))
        return stack

    @abstractmethod
    def advance(self, x: Any, state: Any) -> tuple[Any, Any]:
        """Hidden values of all steps, and the last state. No state: the module makes its own first one."""

    def read(self, hidden: Any) -> Any:
        """The outputs that belong to hidden values."""
        return hidden if self.readout is None else self.readout(hidden)


class Fused(Core):
    """torch's `nn.LSTM`, `nn.GRU` and `nn.RNN` as they are: one call for the whole window."""

    def __init__(self, module: nn.RNNBase, readout: nn.Module | None) -> None:
        super().__init__(module, readout, module.batch_first)
        self.bounded = (True, False) if isinstance(module, nn.LSTM) else (_saturates(module),)

    def advance(self, x: Any, state: Any) -> tuple[Any, Any]:
        return self.module(x, state)  # type: ignore[no-any-return]  # a module call


class Windowed(Core):
    """A user's module that takes whole windows: (x, state) -> (y, state)."""

    def advance(self, x: Any, state: Any) -> tuple[Any, Any]:
        return _pair(self.module, self.module(x, state))


class Stepwise(Core):
    """A module that takes one step of time, called again and again: (x, state) -> (y, state)."""

    def __init__(self, module: nn.Module, readout: nn.Module | None, batch_first: bool) -> None:
        super().__init__(module, readout, batch_first)
        if isinstance(module, nn.RNNCellBase):
            self.bounded = (True, False) if isinstance(module, nn.LSTMCell) else (_saturates(module),)

    def advance(self, x: Any, state: Any) -> tuple[Any, Any]:
        leaves, spec = pytree.tree_flatten(x)
        outputs = []
        for at in zip(*(leaf.unbind(self.time) for leaf in leaves), strict=True):
            y, state = self.once(pytree.tree_unflatten(at, spec), state)
            outputs.append(y)
        return pytree.tree_map(lambda *ys: torch.stack(ys, self.time), *outputs), state

    def once(self, x: Any, state: Any) -> tuple[Any, Any]:
        """One step of time. A cell of torch returns its state alone, the first tensor of which is its output."""
        found = self.module(x, state)
        if not isinstance(self.module, nn.RNNCellBase):
            return _pair(self.module, found)
        return (found[0] if isinstance(found, tuple) else found), found


def make_core(step: Any, readout: nn.Module | None, windowed: bool, batch_first: bool | None) -> Core:
    """The core that fits the user's step module.

    Raises:
        RecurrentError: it is no module, or is bidirectional.
    """
    if not isinstance(step, nn.Module):
        raise RecurrentError(
            [f"step is a {type(step).__name__}, not an nn.Module"],
            "give nn.LSTM(...), a cell, or a module whose forward is (x, state) -> (y, state)",
        )
    if not isinstance(step, nn.RNNBase):
        return (Windowed if windowed else Stepwise)(step, readout, batch_first is True)
    misfits = []
    if step.bidirectional:
        misfits.append(f"{type(step).__name__} is bidirectional: its second direction begins at the sequence's end")
    if isinstance(batch_first, bool) and batch_first != step.batch_first:
        misfits.append(f"batch_first={batch_first}, but the module was made with batch_first={step.batch_first}")
    if misfits:
        raise RecurrentError(misfits, "use one direction, and leave batch_first to the module")
    return Fused(step, readout)


def check_beside(initial: Any, windowed: Any, batch_first: Any, readout: Any) -> None:
    """Check what the user gives beside the step module.

    Raises:
        RecurrentError: an argument does not fit; all of them are listed.
    """
    misfits = []
    if not (initial is None or callable(initial)):
        misfits.append(f"initial={initial!r}: it is a function of the number of sequences, or a module of that kind")
    for name, choice in (("windowed", windowed), ("batch_first", batch_first)):
        if not (isinstance(choice, bool) or (name == "batch_first" and choice is None)):
            misfits.append(f"{name}={choice!r} (True or False)")
    if not (readout is None or callable(readout)):
        misfits.append(f"readout={readout!r}: it is a module, from the step's outputs to those that the loss looks at")
    if misfits:
        raise RecurrentError(misfits, "see help(dg.Recurrent) for what each argument means")


def first_state(core: Core, initial: Any, x: Any, batch: int) -> Any:
    """The first state of `batch` sequences: from `initial`, else zeros in the form that the module makes by itself.

    Raises:
        RecurrentError: the module needs a state, and `initial` is not given.
    """
    if initial is not None:
        return initial(batch)
    module = core.module
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _zeros(module, batch)
    _refuse_other_arguments(module)
    try:
        _, state = core.advance(x, None)
    except RecurrentError:
        raise
    except Exception as error:
        raise RecurrentError(
            [f"{type(module).__name__} fails without a state: {type(error).__name__}: {first_line(error)}"],
            f"{_seen(core, x)}. If that is right, let it take state=None and make zeros, or give initial=lambda batch: "
            "... (its first state)",
        ) from error
    return pytree.tree_map(_zero, state)


def misfits_of_x(core: Core, leaves: Sequence[Tensor]) -> list[str]:
    """What torch's own layers and cells would say of a window's inputs, in words that name the axes."""
    module = core.module
    if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return []
    order = "[batch, time, features]" if core.batch_first else "[time, batch, features]"
    wrong = [list(leaf.shape) for leaf in leaves if leaf.ndim != 3 or leaf.shape[-1] != module.input_size]
    name = f"{type(module).__name__} of {module.input_size} features"
    said = [f"x is {shape}, and a window of this {name} is {order}" for shape in wrong]
    weight = next(module.parameters())
    return said + [
        f"x is {str(leaf.dtype).removeprefix('torch.')}, and the weights are {str(weight.dtype).removeprefix('torch.')}"
        for leaf in leaves
        if leaf.dtype != weight.dtype and not torch.is_autocast_enabled(leaf.device.type)
    ]


def failed(core: Core, x: Any, state: Sequence[Any], error: Exception) -> RecurrentError:
    """The error of a module that failed in the first window that it was shown."""
    shapes = ", ".join(str(list(leaf.shape)) for leaf in state if isinstance(leaf, Tensor))
    facts = f"{type(core.module).__name__} failed in its first window: {type(error).__name__}: {first_line(error)}"
    return RecurrentError([facts], f"{_seen(core, x)}; its state was {shapes or 'no tensor'}")


def first_line(error: BaseException) -> str:
    """The first line of an error's words: of torch's messages the rest is a stack trace."""
    return next(iter(str(error).splitlines()), "")


def _seen(core: Core, x: Any) -> str:
    """What the module was given, and the other ways to give it that."""
    shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    read = "[batch, time, ...]" if core.batch_first else "[time, batch, ...]"
    said = f"x was {', '.join(map(str, shapes))}, read as {read}"
    if isinstance(core, Stepwise):
        one = [shape[: core.time] + shape[core.time + 1 :] for shape in shapes]
        said += (
            f", one step of which is {', '.join(map(str, one))}; a module that takes whole windows says windowed=True"
        )
    return said


def _refuse_other_arguments(module: nn.Module) -> None:
    """Refuse modules that take no state.

    Raises:
        RecurrentError: its forward method cannot be called with an input and a state.
    """
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # written in C, or wrapped
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise RecurrentError(
            [f"{type(module).__name__}.forward{signature} is no step: a step takes (x, state) and returns (y, state)"],
            "give nn.LSTM(...), a cell, or a module of that kind; or name the edges of a model that are fed back, "
            "feedback={'input': 'output'}; a layer that keeps no state belongs into readout=",
        ) from error


def _zero(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return torch.zeros_like(leaf)
    return type(leaf)(0) if type(leaf) in (int, float, complex) else leaf


def _zeros(module: Any, batch: int) -> Any:
    weight = next(module.parameters())
    if isinstance(module, nn.RNNCellBase):
        h = weight.new_zeros(batch, module.hidden_size)
        return (h, h.clone()) if isinstance(module, nn.LSTMCell) else h
    h = weight.new_zeros(module.num_layers, batch, module.proj_size or module.hidden_size)
    if not isinstance(module, nn.LSTM):
        return h
    return h, weight.new_zeros(module.num_layers, batch, module.hidden_size)


def _pair(module: nn.Module, found: Any) -> tuple[Any, Any]:
    if isinstance(found, tuple) and len(found) == 2:
        return found
    raise RecurrentError(
        [f"{type(module).__name__} returned {_said(found)}, where a step returns a pair"],
        "return (y, state); or name the model's feedback edges, feedback={'input': 'output'}",
    )


def _said(found: Any) -> str:
    return f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"


def _saturates(module: Any) -> bool:
    """Whether the hidden values lie within [-1, 1], as outputs of tanh and of gates do."""
    return getattr(module, "nonlinearity", "tanh") == "tanh"
