"""A crossing as the factories of heads, boundaries and conditions see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from .seen import Inputs


class Layers(Protocol):
    """The layers of a model behind a crossing, in the order in which they run."""

    def __len__(self) -> int: ...

    def names(self) -> Sequence[str]:
        """Where each layer's weights are in the model: "layer3.0"."""
        ...

    def fresh(self, chosen: Sequence[int], shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
        """Copies of some layers with fresh parameters, one behind the other, for a value of this shape.

        Returns the module and the shape that it gives.
        """
        ...


Kind: TypeAlias = Literal["features", "maps", "tokens"]


def kind_of(shape: Sequence[int], line: bool) -> Kind:
    """What values of this shape are: see `CrossingSpec.kind`."""
    if len(shape) <= 2:
        return "features"
    return "maps" if line or len(shape) in (4, 5) else "tokens"


@dataclass(frozen=True)
class CrossingSpec:
    """A crossing as factories see it. Of the sizes, only that of features or channels is the same in every call."""

    name: str  # for people: "layer2"
    shape: tuple[int, ...]  # of the example, batch first
    dtype: torch.dtype
    device: torch.device
    condition: "nn.Module | Callable[[CrossingSpec], nn.Module] | None" = None  # what the user chose
    batch_dim: int | None = 0  # where the model keeps the batch; None: nowhere. `shape` has it first in any case
    line: bool = False  # a shape of three is [batch, channels, positions], as 1d convolutions make, and not tokens
    of_complex: bool = False  # the model's value is complex; `shape` and `dtype` are those of its parts, see `real`
    wired: bool = False  # a link between agents that a user has wired; False: a crossing of a model that was cut
    # What surrounds it in the model, where that is known:
    module: str | None = None  # the path of the module that makes the value: "layer2.0"
    above: tuple[str, ...] = ()  # the names of the crossings that its consumers make
    below: tuple[str, ...] = ()  # the names of the crossings that its producer reads
    inputs: Inputs = field(default_factory=Inputs, compare=False)  # of the model, that the value is made of: on "meta"
    after: "Layers | None" = field(default=None, compare=False)  # the layers of the model behind it
    offers: frozenset[str] = frozenset({"label"})  # which needs of a boundary can be met here: see `NEEDS`

    @property
    def kind(self) -> Kind:
        """features: [batch, D], [batch], a number; maps: [batch, C, H, W], [batch, C, D, H, W], and [batch, C, T] with
        `line`; tokens: all others.
        """
        return kind_of(self.shape, self.line)

    @property
    def width(self) -> int:
        """Numbers at one position: D of features and tokens, C of maps, 1 of [batch] and of a number."""
        if len(self.shape) <= 1:
            return 1
        return self.shape[1] if self.kind == "maps" else self.shape[-1]

    @property
    def real(self) -> "CrossingSpec":
        """The crossing as heads see it: the real and the imaginary part of a complex number are two features."""
        if not self.dtype.is_complex:
            return self
        shape = (*(self.shape or (1,)), 1) if len(self.shape) < 2 else self.shape
        at = 1 if self.kind == "maps" else len(shape) - 1
        doubled = tuple(size * 2 if i == at else size for i, size in enumerate(shape))
        return replace(self, shape=doubled, dtype=self.dtype.to_real(), of_complex=True)

    def parts(self, value: Tensor) -> Tensor:
        """The parts of a complex value, as `real` says. Shapes: [batch, D] -> [batch, 2 D]; maps [batch, 2 C, ...]."""
        pairs = torch.view_as_real(value.resolve_conj())
        if self.kind == "maps":
            return pairs.movedim(-1, 2).flatten(1, 2)
        return pairs.flatten(-2) if value.ndim > 1 else pairs.view(-1, 2)

    def joined(self, parts: Tensor, shape: torch.Size) -> Tensor:
        """The complex value of a shape that has these parts."""
        if self.kind == "maps":
            pairs = parts.reshape(parts.shape[0], -1, 2, *parts.shape[2:]).movedim(2, -1)
        else:
            pairs = parts.reshape(*parts.shape[:-1], -1, 2)
        return torch.view_as_complex(pairs.contiguous()).view(shape)
