"""Copies of the layers behind a cut, with parameters of their own that start anew."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..heads.spec import kind_of
from ..passes.graph.own_names import generated
from ..passes.parts.later_layers import Layer, later_layers

Find = Callable[[str], "tuple[nn.Module | None, Any]"]  # of a target: the module that owns it, and itself


class LaterLayers:
    """The layers of a captured graph behind one of its values. They are looked for when they are asked for.

    Args:
        value: the name of the node that makes the value.
        find: finds the model's module or tensor of a target, and the module that holds the tensor.
    """

    def __init__(self, graph: fx.Graph, value: str, find: Find, line: bool):
        self._graph, self._value, self._find, self._line = graph, value, find, line

    @cached_property
    def _layers(self) -> tuple[Layer | None, list[Layer]]:
        node = next(node for node in self._graph.nodes if node.name == self._value)
        before, layers = later_layers(self._graph, node, lambda target: _is_weight(self._find(target)[1]))
        return before, [layer for layer in layers if not layer.last]

    def __len__(self) -> int:
        return len(self._layers[1])

    def names(self) -> list[str]:
        """The innermost module that has all weights of a layer, for each of them; else its first weight."""
        return [_common(layer.weights) for layer in self._layers[1]]

    def fresh(self, chosen: Sequence[int], shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
        """Copies of some layers with fresh parameters, one behind the other, for a value of this shape.

        What the model does with the value before its first layer comes first. Where a layer takes another width than
        the one before gives, a linear map (a 1x1 convolution on maps) stands between them; a coarser grid is made by
        averaging. Layers that cannot follow, such as convolutions behind a vector, are left out.

        Returns the module, and the shape that it gives.
        """
        before, layers = self._layers
        made: list[nn.Module] = []
        for layer in [*([] if before is None else [before]), *(layers[i] for i in chosen)]:
            between = _between(shape, layer.takes, self._line)
            if between is not None:
                made += [*between, *([_Copy()] if layer.writes else []), self._copy(layer)]
                shape = layer.gives
        return nn.Sequential(*made), shape

    def _copy(self, layer: Layer) -> nn.Module:
        anew: dict[int, nn.Module] = {}
        found: dict[str, Any] = {}
        for target in layer.weights:
            owner, thing = self._find(target)
            if isinstance(thing, nn.Module):
                found[target] = anew.setdefault(id(thing), fresh_module(thing))
            elif owner is not None and not any(owner.children()):
                name = next(n for n, t in (*owner.named_parameters(), *owner.named_buffers()) if t is thing)
                found[target] = getattr(anew.setdefault(id(owner), fresh_module(owner)), name)
            else:
                found[target] = _fresh_tensor(thing)
        return generated(layer.graph, found.__getitem__, "Layer")


def _common(paths: Sequence[str]) -> str:
    steps = zip(*(path.removesuffix(".weight").removesuffix(".bias").split(".") for path in paths), strict=False)
    shared = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, steps)]
    return ".".join(shared) or paths[0].removesuffix(".weight")


class _Copy(nn.Module):
    """A copy, for a layer that writes to what it takes. Shapes: any."""

    def forward(self, value: Tensor) -> Tensor:
        return value.clone()


class _Pool(nn.Module):
    """The mean over all positions, or over the cells of a coarser grid.

    Shapes: maps [batch, C, *positions] -> [batch, C, *size]; without a size [batch, C]. Tokens [batch, T, D] ->
    [batch, D].
    """

    def __init__(self, size: tuple[int, ...], tokens: bool = False) -> None:
        super().__init__()
        self.size, self.tokens = size, tokens

    def forward(self, value: Tensor) -> Tensor:
        if self.tokens:
            return value.flatten(1, -2).mean(1)
        if not self.size:
            return value.flatten(2).mean(2)
        pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(self.size)]
        pooled: Tensor = pool(value, self.size)
        return pooled


def _between(has: tuple[int, ...], takes: tuple[int, ...], line: bool) -> list[nn.Module] | None:
    """What makes of a value of one shape one for a layer that takes another; None: nothing does."""
    one, other = kind_of(has, line), kind_of(takes, line)
    if one == other == "maps" and len(has) == len(takes):
        conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(has)]
        coarser = has[2:] != takes[2:] and all(a >= b for a, b in zip(has[2:], takes[2:], strict=True))
        made: list[nn.Module] = [_Pool(takes[2:])] if coarser else []
        return made if has[1] == takes[1] else [*made, conv(has[1], takes[1], 1, bias=False)]
    if other == "features" and len(takes) == 2:
        made = [] if one == "features" else [_Pool((), one == "tokens")]
        width = has[1] if one == "maps" else has[-1]
        return made if width == takes[1] else [*made, nn.Linear(width, takes[1], bias=False)]
    if one == other == "tokens" and len(has) == len(takes):
        return [] if has[-1] == takes[-1] else [nn.Linear(has[-1], takes[-1], bias=False)]
    return None


def fresh_module(module: nn.Module) -> nn.Module:
    """A copy of a module with fresh parameters, without hooks.

    Layers with a `reset_parameters` (or `_reset_parameters`) are reset by it. Other parameters are drawn as a linear
    layer's where they have two axes or more, and keep their numbers else: scales and shifts.
    """
    made = copy.deepcopy(module)
    for part in made.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
            continue
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = _fresh_tensor(parameter)
    return made


def _fresh_tensor(tensor: Any) -> Any:
    """A tensor of the model for a layer's copy: a parameter starts anew, all else is copied."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach().clone() if isinstance(tensor, Tensor) else tensor
    made = nn.Parameter(tensor.detach().clone(), tensor.is_floating_point())
    if made.ndim > 1 and made.requires_grad:
        nn.init.kaiming_uniform_(made, a=5**0.5)
    return made


def _is_weight(thing: Any) -> bool:
    """Whether it is a parameter of two axes or more, or a module that has one."""
    if isinstance(thing, nn.Module):
        return any(parameter.ndim > 1 for parameter in thing.parameters())
    return isinstance(thing, nn.Parameter) and thing.ndim > 1


def evenly(count: int, of: int) -> list[int]:
    """`count` of so many layers, evenly spaced, the last among them; all where there are fewer."""
    count = min(count, of)
    return [(i + 1) * of // count - 1 for i in range(count)]
