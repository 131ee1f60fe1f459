"""The networks of local losses: a classifier, and a decoder that rebuilds the model's input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..heads.convolution import LAYERS
from ..heads.layers import Hidden
from ..heads.seen import Inputs
from ..heads.spec import CrossingSpec
from ..passes.errors import is_whole, nearest
from .boundary import BoundaryError

MODES = {3: "linear", 4: "bilinear", 5: "trilinear"}  # of interpolation, by the axes of a map


class Classifier(nn.Module):
    """One hidden layer, averaged over positions where the label has none, and scores of the classes.

    features   Linear ─► Normalise ─► ReLU ─► Linear
    maps       conv 3x3 ─► Normalise ─► ReLU ─► mean over positions ─► Linear
    tokens     as features, per token, or the mean over tokens ─► Linear

    With hidden=0 it is the last Linear alone.
    """

    def __init__(self, spec: CrossingSpec, classes: int, hidden: int | None) -> None:
        super().__init__()
        self.width, units = spec.width, hidden or spec.width
        self.maps = spec.kind == "maps"
        layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d = nn.Linear(spec.width, units, False)
        if self.maps:
            layer = LAYERS[len(spec.shape)][0](spec.width, units, 3, padding=1, bias=False)
        self.hidden = Hidden(layer) if hidden != 0 else None
        self.output = nn.Linear(units, classes)
        self.name = "linear classifier" if hidden == 0 else f"classifier {units}"

    def forward(self, value: Tensor, per_position: bool) -> Tensor:
        """Shapes: [batch, classes], or [batch, *positions, classes] per position."""
        if self.maps:
            units = value if self.hidden is None else self.hidden(value)
            units = units.movedim(1, -1) if per_position else units.flatten(2).mean(2)
        else:
            rows = value.reshape(-1, self.width)
            units = rows if self.hidden is None else self.hidden(rows)
            if value.ndim > 2:
                units = units.view(*value.shape[:-1], -1)
                units = units if per_position else units.flatten(1, -2).mean(1)
        scores: Tensor = self.output(units)
        return scores


class Decoder(nn.Module):
    """Rebuilds one of the model's inputs from a crossing's value, so that the value keeps what it knows of it.

    maps of maps     interpolate to the input's size ─► conv 3x3 ─► Normalise ─► ReLU ─► conv 3x3
    tokens of as many tokens, features   Linear ─► Normalise ─► ReLU ─► Linear
    anything else    the mean over positions ─► Linear ─► Normalise ─► ReLU ─► Linear, to all numbers of a sample

    Args:
        which: the name of the input, or its position; None: the first one with floating-point numbers.
        hidden: units or channels of the hidden layer.

    Raises:
        BoundaryError: there is no such input, or it holds no floating-point numbers.
    """

    def __init__(self, spec: CrossingSpec, weight: float, which: str | int | None, hidden: int) -> None:
        super().__init__()
        self.weight, self.crossing, self.input = weight, spec.name, _chosen(spec, which)
        like = spec.inputs[self.input]
        self.maps = spec.kind == "maps" and like.ndim == len(spec.shape)
        self.per_position = not self.maps and spec.kind == "tokens" and like.shape[:-1] == spec.shape[:-1]
        self.of_maps = spec.kind == "maps"
        if self.maps:
            conv = LAYERS[like.ndim][0]
            self.hidden = Hidden(conv(spec.width, hidden, 3, padding=1, bias=False))
            self.output: nn.Module = conv(hidden, like.shape[1], 3, padding=1)
        else:
            self.sizes = like.shape[-1:] if self.per_position else like.shape[1:]
            self.hidden = Hidden(nn.Linear(spec.width, hidden, bias=False))
            self.output = nn.Linear(hidden, self.sizes.numel())
        self.name = f"decoder {hidden} of {self.input}"

    def error(self, value: Tensor, inputs: Inputs) -> Tensor:
        """The mean squared error of what is rebuilt, relative to the input's variance over the batch.

        Raises:
            BoundaryError: the input is of another batch or size than the value belongs to.
        """
        given = inputs[self.input].to(value.dtype)
        rebuilt = self(value, given.shape[2:])
        if rebuilt.shape != given.shape:
            raise BoundaryError(
                f"boundary '{self.crossing}' rebuilds the input '{self.input}' as {list(rebuilt.shape)}, and this call "
                f"has {list(given.shape)}: inputs of one size, batch first; or give this crossing another boundary"
            )
        variance = given.var(unbiased=False) if given.numel() > 1 else given.new_ones(())
        return F.mse_loss(rebuilt, given) / variance.clamp_min(1e-12)

    def forward(self, value: Tensor, positions: torch.Size) -> Tensor:
        """Shapes: the crossing's -> the input's. `positions`: of maps."""
        if self.maps:
            if value.shape[2:] != positions:
                value = F.interpolate(value, positions, mode=MODES[value.ndim])
            return self.output(self.hidden(value))  # type: ignore[no-any-return]  # module calls
        if self.of_maps:
            value = value.flatten(2).mean(2)
        elif value.ndim > 2 and not self.per_position:
            value = value.flatten(1, -2).mean(1)
        rows = value.reshape(-1, self.hidden.layer.weight.shape[1])
        units: Tensor = self.output(self.hidden(rows))
        return units.view(*value.shape[: -1 if value.ndim > 1 else None], *self.sizes)


def _chosen(spec: CrossingSpec, which: str | int | None) -> str:
    """The name of the input to rebuild."""
    names = list(spec.inputs)
    fit = [n for n, t in spec.inputs.items() if t.is_floating_point() and t.ndim and len(t) == spec.shape[0]]
    if which is None and fit:
        return fit[0]
    if is_whole(which) and which < len(names):
        which = names[which]
    if isinstance(which, str) and which in fit:
        return which
    described = [f"{n} ({list(t.shape)}, {str(t.dtype).removeprefix('torch.')})" for n, t in spec.inputs.items()]
    asked = "" if which is None else f"input={which!r}{nearest(which, names) if isinstance(which, str) else ''}: "
    raise BoundaryError(
        f"boundary '{spec.name}' cannot rebuild the model's input: {asked}it must be a tensor of floating-point "
        f"numbers with the batch first, and this value is made of {', '.join(described) or 'none'}. Where a model "
        "reads tokens, take boundary='local-loss' or 'auglocal'"
    )
