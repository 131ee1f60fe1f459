"""What the estimates are worth: one true gradient beside them, and nothing changed by looking."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..boundaries.guard import Guard
from ..decoupled.module import DecoupledModule
from ..passes.errors import DniGraphError
from ..passes.graph.pytrees import field_of
from ..passes.sandbox.journal import all_or_nothing
from ..passes.sandbox.snapshot import untouched
from .check import StandIn, refuse_call, told

Loss = str | Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Probe:
    """Cosines between what the heads make of one batch and the truth (full backprop on the same batch)."""

    crossings: dict[str, float]  # of the gradient handed to the producer
    weights: dict[str, float]  # of the gradient of all weights of a part: what learning really follows


@all_or_nothing
def probe(dm: DecoupledModule, *args: Any, target: Any, loss: Loss, **kwargs: Any) -> Probe:
    """Compare the estimates with true gradients on one batch. Model, heads and gradients stay as they are.

    Guards are open while this looks: it compares what the heads say, whether their parts follow it or not.

    A head's own error, and even its cosine to its target, can look fine while nothing is learned: the targets of lower
    cuts are built on the heads above. Only the truth tells.

    Raises:
        DniGraphError: the model is in eval mode, the call does not fit it, or the loss is not one number.
    """
    refuse_call("probe", dm, args, kwargs)
    dm.follow()
    if not dm.training:
        raise DniGraphError("probe looks at a step of training: call dm.train() before")
    if not callable(loss) and not isinstance(loss, str):
        words = "is a function of (output, target), or the name of the output's field that holds the loss"
        raise DniGraphError(f"loss={loss!r}: it {words}")

    guards = [module for module in dm.boundary_set.modules.modules() if isinstance(module, Guard)]

    def gradients() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        handed: dict[str, Tensor] = {}
        with untouched(dm.original), untouched(dm.boundary_set.modules), torch.enable_grad(), dm.conditioned(target):
            for guard in guards:
                guard.set(True)
            handles = [b.register_forward_pre_hook(_keeping(handed, name)) for name, b in dm.standing().items()]
            try:
                with told("the call"):
                    output = dm(*args, **kwargs)
                parts = _backward(dm, _loss(loss, output, target))
            finally:
                for handle in handles:
                    handle.remove()
        for guard in guards:
            guard.forget()
        return handed, parts

    ours, our_parts = gradients()
    stand_ins: dict[str, StandIn] = {}
    with dm.standing_in(lambda key: stand_ins.setdefault(key, StandIn("oracle"))):
        true, true_parts = gradients()
    return Probe(
        {name: _cosine(ours[name], true[name]) for name in dm.boundaries if name in ours and name in true},
        {name: _cosine(our_parts[name], true_parts[name]) for name in our_parts if name in true_parts},
    )


def _loss(loss: Loss, output: Any, target: Any) -> Tensor:
    with told("the loss"):
        value: Any = field_of(output, loss) if isinstance(loss, str) else loss(output, target)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        if isinstance(value, Tensor) and value.numel() == 1:
            kind += " that depends on nothing that learns"
        raise DniGraphError(f"loss={loss!r} must give one number in a tensor, not {kind}")
    return value


def _keeping(handed: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(gradient: Tensor | None) -> None:
        if gradient is not None:  # a silent boundary hands nothing down
            handed[name] = gradient.detach()

    def hook(module: nn.Module, args: Any) -> None:
        if args[0].requires_grad:
            args[0].register_hook(keep)

    return hook


def _backward(dm: DecoupledModule, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of a backward pass as one long vector for each part."""
    for p in dm.parameters():
        p.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    vectors = {}
    for name, parameters in dm.parameters_of_parts().items():
        if parameters:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            vectors[name] = torch.cat([gradient.flatten() for gradient in gradients])
    return vectors


def _cosine(x: Tensor, y: Tensor) -> float:
    """The cosine of two gradients; 0 where one of them is zero."""
    x, y = x.flatten().double(), y.flatten().double()
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms > 0 else 0.0
