"""Sequences of any length as windows of at most T steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from .core import Core
from .recurrent_error import RecurrentError
from .window import Window, make_window, slice_time


@dataclass(frozen=True)
class Stream:
    """Sequences side by side, padded to one length. `lengths` [batch]: where each ends; None: all are whole."""

    whole: Window
    lengths: Tensor | None
    ends: bool
    device: torch.device

    def windows(self, core: Core, horizon: int) -> Iterator[Window]:
        """The windows, in order; the last one may be shorter.

        length 7, horizon 3     0 1 2 │ 3 4 5 │ 6
        a sequence of 4         0 1 2 │ 3 - - │ -      padding has no loss, and its sequence has ended
        """
        whole = self.whole
        for begin in range(0, whole.length, horizon):
            end = min(begin + horizon, whole.length)

            def piece(tree: Any, begin: int = begin, end: int = end) -> Any:
                return slice_time(tree, core.time, begin, end)

            reset = None if whole.reset is None else whole.reset[begin:end]
            ends = None if self.lengths is None else self.lengths <= end
            if end == whole.length:
                ends = torch.ones(whole.batch, dtype=torch.bool, device=self.device) if self.ends else None
            elif ends is not None and not bool(ends.any()):
                ends = None
            yield Window(
                piece(whole.x), piece(whole.target), piece(whole.mask), reset, ends, whole.label,
                end - begin, whole.batch,
                last=end == whole.length,
            )  # fmt: skip


def make_stream(core: Core, x: Any, target: Any, mask: Any, reset: Any, lengths: Any, ends: bool, label: Any) -> Stream:
    """Whole sequences as a stream. Packed ones, and those with `lengths`, are padded and masked.

    Raises:
        RecurrentError: the tensors do not fit each other, or sequences of several lengths have no end.
    """
    packed = [t for t in pytree.tree_leaves((x, target), is_leaf=_is_packed) if _is_packed(t)]
    longs = [pad_packed_sequence(t)[1].tolist() for t in packed]
    if any(long != longs[0] for long in longs):
        raise RecurrentError(
            [f"packed sequences of x and target differ in length: {' and '.join(map(str, longs))}"],
            "pack both with the same lengths",
        )
    if isinstance(x, PackedSequence):
        x, lengths = pad_packed_sequence(x, batch_first=core.batch_first)
    target = pytree.tree_map(
        lambda t: pad_packed_sequence(t, batch_first=core.batch_first)[0] if isinstance(t, PackedSequence) else t,
        target,
        is_leaf=_is_packed,
    )
    whole = make_window(core, None, x, target, mask, reset, None, label)
    device = next(t.device for t in pytree.tree_leaves(whole.x) if isinstance(t, Tensor))
    if lengths is None:
        return Stream(whole, None, ends, device)
    try:
        lengths = torch.as_tensor(lengths).to(device)
    except (TypeError, ValueError, RuntimeError) as error:
        words = f"lengths={lengths!r} is no list of whole numbers, one per sequence: {error}"
        raise RecurrentError([words], "lengths counts the steps of each sequence, from 0 to all of x") from error
    misfits = []
    if lengths.shape != (whole.batch,) or lengths.is_floating_point():
        misfits.append(f"lengths is {list(lengths.shape)}, but must be [{whole.batch}] whole numbers, one per sequence")
    elif int(lengths.min()) < 0 or int(lengths.max()) > whole.length:
        misfits.append(f"lengths go from {int(lengths.min())} to {int(lengths.max())}, but x has {whole.length} steps")
    if not ends:
        misfits.append("sequences of several lengths end, but ends=False says that the stream goes on")
    if misfits:
        raise RecurrentError(misfits, "lengths counts the steps of each sequence, from 0 to all of x")
    there = torch.arange(whole.length, device=lengths.device)[:, None] < lengths
    there = there.t() if core.batch_first else there
    mask = there if whole.mask is None else whole.mask & there
    fields = {**vars(whole), "mask": None if bool(mask.all()) else mask}
    return Stream(Window(**fields), lengths, ends, device)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)
