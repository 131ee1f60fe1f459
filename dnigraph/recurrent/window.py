"""One window of a stream: its checked tensors, and the forward pass over it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..passes.errors import nearest
from ..passes.graph.pytrees import field_of
from .core import Core, misfits_of_x
from .layout import Layout
from .recurrent_error import RecurrentError

Loss = Callable[[Any, Any], Tensor] | str
FIELD = "name a field that holds one loss per entry, or give a function of (output, target)"


@dataclass(frozen=True)
class Window:
    """Shapes: x, target [time, batch, ...], or [batch, time, ...] where the core is batch first, as is the mask."""

    x: Any
    target: Any
    mask: Tensor | None  # bool, one entry per step and sequence: whose loss counts; None: all
    reset: Tensor | None  # bool [time, batch], always time first: sequences that begin anew before a step
    ends: Tensor | None  # bool [batch]: which sequences end with this window; None: none
    label: Any  # the condition of the heads
    length: int
    batch: int
    last: bool = False  # the last window of a call of `run`

    @property
    def all_end(self) -> bool:
        """Whether all sequences end with this window."""
        return self.ends is not None and bool(self.ends.all())


@dataclass
class Forward:
    """The results of a forward pass over a window."""

    output: Any
    last: list[Any]  # leaves of the state behind the last step
    early: list[Any] | None  # leaves of the state behind the first step, where they were asked for


def make_window(
    core: Core, horizon: int | None, x: Any, target: Any, mask: Any, reset: Any, ends: Any, label: Any
) -> Window:
    """The window, when its tensors fit each other.

    Raises:
        RecurrentError: they do not; all misfits are listed.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    order = "[batch, time, ...]" if core.batch_first else "[time, batch, ...]"
    if not leaves or any(leaf.ndim < 2 for leaf in leaves):
        got = ", ".join(str(list(leaf.shape)) for leaf in leaves) or "no tensor"
        raise RecurrentError([f"x is {got}, but a window is {order}"], "add the axes of time and batch to x")
    shape = leaves[0].shape[:2]
    length, batch = shape[core.time], shape[1 - core.time]
    sizes = f"x has {length} steps of {batch} sequences"
    targets = [t for t in pytree.tree_leaves(target) if isinstance(t, Tensor) and t.shape[:2] != shape]
    misfits = [f"tensors of x differ: {list(leaf.shape)}, but {sizes}" for leaf in leaves if leaf.shape[:2] != shape]
    misfits += [f"target is {list(t.shape)}, but must begin with {list(shape)}" for t in targets]
    if target is not None and not any(isinstance(t, Tensor) for t in pytree.tree_leaves(target)):
        misfits.append(f"target is {target!r}, with no tensor in it: it must begin with {list(shape)}")
    if isinstance(label, Tensor) and label.ndim and not len(label):
        misfits.append(f"label is {list(label.shape)}: it has no entry")
    if horizon is not None and length > horizon:
        misfits.append(f"the window has {length} steps, the horizon is {horizon}: rnn.run(...) cuts long sequences")
    if length == 0 or batch == 0:
        misfits.append(f"{sizes}: nothing to learn from")
    misfits += misfits_of_x(core, leaves)
    device = leaves[0].device
    mask = _bools("mask", mask, {(length,): "one per step", tuple(shape): "one per entry"}, misfits, device)
    reset = _bools("reset", reset, {(batch,): "one per sequence", tuple(shape): "one per entry"}, misfits, device)
    ends = _bools("ends", _flag(ends, batch), {(batch,): "one per sequence"}, misfits, device)
    if misfits:
        raise RecurrentError(misfits, f"the order is {order}; batch_first={core.batch_first}")
    ends = ends if ends is not None and bool(ends.any()) else None
    if mask is not None and mask.ndim == 1:
        mask = (mask if core.batch_first else mask[:, None]).expand(shape)
    return Window(x, target, mask, _time_first(reset, core, length), ends, label, length, batch)


def run_window(
    core: Core, layout: Layout, leaves: Sequence[Any], first: Sequence[Any], window: Window, early: bool
) -> Forward:
    """Run the core over a window from the state `leaves`; a sequence that begins anew inside goes on from `first`.

        steps    0 1 2 3 4 5 6 7
        reset          x   x          ─►  pieces 0-2, 3-4, 5-7, each in one call of the core

    Args:
        early: also tell the state behind the first step.
    """
    cuts = [] if window.reset is None else [t for t, any_ in enumerate(window.reset.any(1).tolist()) if any_ and t]
    borders = sorted({0, *([1] if early and window.length > 1 else []), *cuts, window.length})
    state, outputs, seen = list(leaves), [], None
    for begin, end in pairwise(borders):
        if begin in cuts and window.reset is not None:
            state = layout.choose(window.reset[begin], first, state)
        piece = window.x if len(borders) == 2 else slice_time(window.x, core.time, begin, end)
        with core.labelled(window.label):
            hidden, after = core.advance(piece, layout.state(state))
        state = layout.leaves(after)
        outputs.append(hidden)
        seen = state if end == 1 and early else seen
    hidden = outputs[0] if len(outputs) == 1 else pytree.tree_map(lambda *p: torch.cat(p, core.time), *outputs)
    return Forward(core.read(hidden), state, seen)


def window_loss(loss: Loss, output: Any, window: Window, horizon: int) -> tuple[Tensor | None, float, int]:
    """The mean loss over the entries that count, its share of a whole window, and their number.

    The share makes every entry of a sequence weigh the same, however many of them count in its window: the losses of a
    sequence's windows add up to the sum over its entries / (horizon * batch). Without a mask it is 1.

    Raises:
        RecurrentError: the loss is not one number.
    """
    if window.target is None and not isinstance(loss, str):
        return None, 0.0, 0
    picked = None if window.mask is None else window.mask.reshape(-1).nonzero()[:, 0]
    count = window.length * window.batch if picked is None else len(picked)
    if count == 0:
        return None, 0.0, 0

    def entries(t: Any) -> Any:
        flat = t.flatten(0, 1) if isinstance(t, Tensor) and t.ndim > 1 else t
        return flat if picked is None or not isinstance(t, Tensor) else flat[picked]

    found: Any
    if isinstance(loss, str):
        field = field_of(output, loss)
        if field is None:
            raise RecurrentError([f"loss={loss!r}: the output has no such field{_fields(output, loss)}"], FIELD)
        found = entries(field).mean() if isinstance(field, Tensor) else field
    else:
        found = _called(loss, pytree.tree_map(entries, output), pytree.tree_map(entries, window.target))
    if not isinstance(found, Tensor) or found.numel() != 1:
        got = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        way = "it is called with (output, target), each [entries, ...], and returns their mean"
        raise RecurrentError([f"loss={loss!r} gave {got}, where one number in a tensor was asked"], way)
    return found, count / (horizon * window.batch), count


def _called(loss: Callable[[Any, Any], Any], output: Any, target: Any) -> Any:
    """The loss; an error of it has a note of what it was called with."""
    try:
        return loss(output, target)
    except Exception as error:
        error.add_note(f"the loss was called with an output {_shapes(output)} and a target {_shapes(target)}")
        raise


def _shapes(tree: Any) -> str:
    found = [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor)]
    words = [f"{list(t.shape)} of {str(t.dtype).removeprefix('torch.')}" for t in found]
    return ", ".join(words) or f"that is a {type(tree).__name__}"


def _fields(output: Any, name: str) -> str:
    known = [str(k) for k in (output if isinstance(output, Mapping) else getattr(output, "_fields", ()))]
    known = known or [k for k in getattr(output, "__dict__", {}) if not k.startswith("_")]
    there = f"; there are {', '.join(known)}" if known else f": it is a {type(output).__name__}"
    return f"{nearest(name, known)}{there}"


def slice_time(tree: Any, axis: int, begin: int, end: int) -> Any:
    """Steps `begin` to `end` of every tensor."""
    return pytree.tree_map_only(Tensor, lambda t: t.narrow(axis, begin, end - begin), tree)


def _bools(
    name: str, value: Any, shapes: dict[tuple[int, ...], str], misfits: list[str], device: torch.device
) -> Tensor | None:
    if value is None:
        return None
    fitting = " or ".join(f"{list(shape)} ({said})" for shape, said in shapes.items())
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        misfits.append(f"{name} must be a tensor of bools {fitting}, not {_kind(value)}")
    elif tuple(value.shape) not in shapes:
        misfits.append(f"{name} is {list(value.shape)}, but must be {fitting}")
    else:
        return value.to(device)
    return None


def _flag(ends: Any, batch: int) -> Any:
    if ends is None or ends is False:
        return None
    return torch.ones(batch, dtype=torch.bool) if ends is True else ends


def _time_first(reset: Tensor | None, core: Core, length: int) -> Tensor | None:
    if reset is None or reset.ndim == 1:
        return None if reset is None else torch.cat((reset[None], reset.new_zeros(length - 1, len(reset))))
    return reset.t() if core.batch_first else reset


def _kind(value: Any) -> str:
    return f"a tensor of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else repr(value)
