"""What boundaries and their heads may look at in one step, beside the value that crosses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..passes.errors import DniGraphError, nearest

# What a boundary may declare that it needs, and what that is.
NEEDS = {
    "label": "the label of the step",
    "inputs": "the model's inputs",
    "error": "the gradient of the loss at the model's outputs",
    "after": "the layers of the model behind the cut",
    "neighbours": "the boundaries above and below",
}


class Inputs(Mapping[str, Tensor]):
    """The tensors among a model's inputs, by name or by position: `inputs["x"]`, `inputs[0]`.

    The names are those of the plan's inputs: those of the arguments, but for Python's own, as `input_1` for `input`.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None):
        self._tensors = dict(tensors or {})

    def __getitem__(self, name: str | int) -> Tensor:
        names = list(self._tensors)
        if isinstance(name, int) and -len(names) <= name < len(names):
            name = names[name]
        if name in names:
            return self._tensors[str(name)]
        raise KeyError(
            f"there is no input {name!r} here{nearest(str(name), names)}; there are {', '.join(names) or 'none'}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @classmethod
    def of(cls, names: Sequence[str], values: Sequence[Any]) -> "Inputs":
        """The tensors among `values`, detached."""
        return cls({n: v.detach() for n, v in zip(names, values, strict=True) if isinstance(v, Tensor)})


EMPTY = Inputs()


@dataclass
class Outputs:
    """The gradients of the loss at a model's outputs, once it has been differentiated."""

    gradients: list[Tensor] | None = None

    def note(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """The loss has been differentiated: these are its gradients at the outputs; None: it does not read that one."""
        if self.gradients is None:  # of several graphs of one call the last one comes first
            pairs = zip(outputs, gradients, strict=True)
            self.gradients = [torch.zeros_like(o) if g is None else g.detach() for o, g in pairs]

    def joint(self) -> Tensor | None:
        """As `Seen.error` gives it; None: there is no gradient at an output with a batch."""
        found = [gradient for gradient in self.gradients or () if gradient.ndim]
        if len(found) < 2:
            return found[0] if found else None
        return torch.cat([gradient.reshape(len(gradient), -1) for gradient in found], 1)


@dataclass(frozen=True)
class Seen:
    """What a boundary may look at in one step, if it declares that it needs it.

    Attributes:
        label: what `dm.conditioned(label)`, `target=` or `label=` gave; None: nothing.
        inputs: the tensors among the model's inputs in this call, detached. Empty where no boundary needs them.
        outputs: where the gradients at the model's outputs come to; None: where no boundary needs them.
    """

    label: Any = None
    inputs: Inputs = field(default_factory=lambda: EMPTY)
    outputs: Outputs | None = None

    def error(self) -> Tensor | None:
        """The gradient of the loss at the model's output, to be called in `settle`. None: the loss reads no output, or
        has not been differentiated yet.

        Outputs that are single numbers, as losses are, do not count. Of several others the gradients stand side by
        side, with zeros for those that the loss does not read.

        Shapes: that of the output; of several [batch, numbers of all].

        Raises:
            DniGraphError: no boundary of the model declares that it needs it.
        """
        if self.outputs is None:
            raise DniGraphError("seen.error() is there for boundaries that declare it: needs = frozenset({'error'})")
        return self.outputs.joint()
