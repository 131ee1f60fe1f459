"""The state of a step module, any nesting of tensors, as rows: one row of numbers for each sequence of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..passes.graph.pytrees import Nesting, flatten, unflatten
from .recurrent_error import RecurrentError


@dataclass(frozen=True)
class Layout:
    """The nesting of a state, and the batch axis of each of its tensors.

        state  (h [layers, batch, 64], c [layers, batch, 64])  ─►  leaves [h, c]  ─►  rows [batch, layers * 128]

    Only floating-point tensors with a batch carry gradients (`live`); all other leaves are passed on as they are.
    """

    spec: Nesting
    axes: tuple[int | None, ...]  # the batch axis of each leaf; None: it has none
    live: tuple[int, ...]  # the leaves that carry gradients
    samples: tuple[Any, ...]  # the first state of two sequences, leaf by leaf
    widths: tuple[int, ...]  # numbers per sequence in each live leaf

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layout":
        return self  # it never changes

    @property
    def width(self) -> int:
        """Numbers per sequence in all live leaves."""
        return sum(self.widths)

    def leaves(self, state: Any) -> list[Any]:
        """The leaves of a state of this layout.

        Raises:
            RecurrentError: it is nested in another way.
        """
        found, spec = flatten(state)
        if spec != self.spec:
            raise RecurrentError(
                [f"the state is nested as {spec}, where the stream began with {self.spec}"],
                "the step module must return states that are nested as those that it takes",
            )
        wrong = [
            f"leaf {i} of the state is {_said(found[i])}; for two sequences it is {_said(self.samples[i])}"
            for i in self.live
            if not _is_real(found[i]) or found[i].ndim != self.samples[i].ndim
        ]
        if wrong:
            raise RecurrentError(wrong, "give a state of the form that the step module takes and returns")
        return found

    def refuse_growth(self, before: Sequence[Any], leaves: Sequence[Any]) -> None:
        """Refuse states that change their shapes from step to step: a head could not look at them.

        Raises:
            RecurrentError: the state has grown, or changed in another way.
        """
        changed = [
            f"leaf {i} of the state was {_said(before[i])} before and is {_said(leaves[i])} behind the window"
            for i in self.live
            if getattr(leaves[i], "shape", None) != before[i].shape
        ]
        if changed:
            way = "return a state of the shapes that were taken; cut what grows, a memory of all steps, to a length"
            raise RecurrentError(changed, way)

    def state(self, leaves: Sequence[Any]) -> Any:
        """The state with these leaves."""
        return unflatten(leaves, self.spec)

    def live_leaves(self, leaves: Sequence[Any]) -> list[Tensor]:
        """The leaves that carry gradients."""
        return [leaves[i] for i in self.live]

    def rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """Values (or gradients) of the live leaves, side by side. Shapes: -> [batch, width]."""
        return torch.cat(self.pieces(tensors), -1)

    def pieces(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each live leaf as rows of its own. Shapes: -> [batch, width of the leaf] each."""
        axes = (self.axes[i] for i in self.live)
        found = [t.movedim(axis or 0, 0) for t, axis in zip(tensors, axes, strict=True)]
        return [t.reshape(len(t), -1) for t in found]

    def split(self, rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
        """The live leaves from rows, in the shapes of `like`. The inverse of `rows`."""
        found = []
        pieces = torch.split(rows, list(self.widths), -1)
        for piece, index, model in zip(pieces, self.live, like, strict=True):
            axis = self.axes[index] or 0
            shape = [model.shape[axis], *model.shape[:axis], *model.shape[axis + 1 :]]
            found.append(piece.reshape(shape).movedim(0, axis).to(model.dtype))
        return found

    def choose(self, mask: Tensor, chosen: Sequence[Any], others: Sequence[Any]) -> list[Any]:
        """For each sequence the leaves of `chosen` where the mask says so, else of `others`. Shapes: mask [batch].

        Leaves without a batch axis are taken from `chosen` only if the mask selects all sequences.
        """
        alike = chosen if bool(mask.all()) else others
        return [
            same if axis is None else torch.where(_beside(mask, new, axis), new, other)
            for axis, new, other, same in zip(self.axes, chosen, others, alike, strict=True)
        ]

    def first(self, batch: int) -> list[Any]:
        """The leaves of the first state of `batch` sequences."""
        found = []
        for axis, sample in zip(self.axes, self.samples, strict=True):
            sizes = [batch if i == axis else -1 for i in range(sample.ndim)] if axis is not None else []
            found.append(sample if axis is None else sample.narrow(axis, 0, 1).expand(sizes))
        return found

    def batch(self, leaves: Sequence[Any]) -> int:
        """The number of sequences in a state."""
        return next(int(leaf.shape[axis]) for leaf, axis in zip(leaves, self.axes, strict=True) if axis is not None)


def find_layout(two: Any, three: Any) -> Layout:
    """The layout, found by comparing the states of two and of three sequences: the batch axis is where sizes differ.

    Raises:
        RecurrentError: they are nested in two ways, or no tensor has a batch.
    """
    (leaves, spec), (others, other_spec) = flatten(two), flatten(three)
    if spec != other_spec:
        raise RecurrentError(
            [f"the state of two sequences is nested as {spec}, that of three as {other_spec}"],
            "the nesting of a state may not depend on the batch",
        )
    axes = tuple(_batch_axis(a, b) for a, b in zip(leaves, others, strict=True))
    if all(axis is None for axis in axes):
        raise RecurrentError(
            [f"no tensor of the state grows with the batch: {[_said(leaf) for leaf in leaves]}"],
            "the module must take and return a state with one entry per sequence; is it one that takes whole windows? "
            "Then say windowed=True",
        )
    live = tuple(
        i for i, (leaf, axis) in enumerate(zip(leaves, axes, strict=True)) if axis is not None and _is_real(leaf)
    )
    widths = tuple(prod(leaves[i].shape) // leaves[i].shape[axes[i] or 0] for i in live)
    return Layout(spec, axes, live, tuple(leaves), widths)


def _batch_axis(two: Any, three: Any) -> int | None:
    if not isinstance(two, Tensor):
        return None
    differing = [i for i, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if (a, b) == (2, 3)]
    return differing[0] if differing else None


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _beside(mask: Tensor, leaf: Tensor, axis: int) -> Tensor:
    return mask.view(*[1] * axis, -1, *[1] * (leaf.ndim - axis - 1))


def _said(leaf: Any) -> str:
    return f"{list(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
