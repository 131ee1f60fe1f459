"""The autograd functions of this library: one gives a value another gradient than its consumers sent, one looks on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..heads.seen import Outputs


@dataclass
class Visit:
    """One crossing in one step: the gradients that are known at once, and those that wait for the target.

    Attributes:
        roots: roots[0] is the crossing's value, attached to its producer; then tensors whose graphs lead to the
            boundary's own parameters (or, a local loss, through the value to the producer).
        now: the gradients of the roots that are known before the target, None for a root whose gradient is not; None
            in place of the tuple: the producer must wait for the target.
        settle: given the target (the consumers' gradients, summed by `sum_in_order`; None: none of them sent any), the
            gradients of the roots that `now` does not have, None for the others.
    """

    roots: tuple[Tensor, ...]
    now: tuple[Tensor | None, ...] | None
    settle: Callable[[Tensor | None], tuple[Tensor | None, ...]]

    def gradients(self, target: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of every root."""
        settled = self.settle(target)
        if self.now is None:
            return settled
        return tuple(late if early is None else early for early, late in zip(self.now, settled, strict=True))


class Exchange(torch.autograd.Function):
    """Pass a crossing's value on unchanged; on the way back give every root of the visit its own gradient.

        forward     value ──────────────► value for consumer 1 ... k
                    estimate ─► (held)

        backward    value    ◄─ now[0]          target = sum of the consumers' gradients
                    estimate ◄─ settle(target)[1]

    The head learns inside the same backward pass, because its prediction is an input of this function and receives the
    gradient of the regression as its own. Nothing is differentiated twice and no second backward pass is started.
    """

    @staticmethod
    def forward(ctx: Any, visit: Visit, consumers: int, *roots: Tensor) -> Tensor | tuple[Tensor, ...]:
        ctx.visit_gradients = Visit((), visit.now, visit.settle).gradients  # without roots: no cycle of references
        ctx.set_materialize_grads(False)
        ctx.layout = (roots[0].size(), roots[0].stride())
        value = roots[0]
        # An alias made by detach may be written to in place by its consumer; autograd forbids that for a view.
        return value.detach() if consumers == 1 else tuple(value.detach() for _ in range(consumers))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        laid_out = [_laid_out(gradient, *ctx.layout) for gradient in gradients]
        return None, None, *ctx.visit_gradients(sum_in_order(laid_out))


def _laid_out(gradient: Tensor | None, size: torch.Size, stride: tuple[int, ...]) -> Tensor | None:
    """The gradient in the memory layout of its value, as autograd keeps it in `.grad`.

    Kernels are chosen by memory layout, so without this a runner that reads `.grad` would get other last bits.
    """
    if gradient is None or gradient.stride() == stride:
        return gradient
    dense = torch.empty_strided(size, stride, dtype=gradient.dtype, device=gradient.device)
    if dense.untyped_storage().nbytes() != dense.numel() * dense.element_size():
        return gradient.contiguous()  # the value is strided with gaps or overlaps: autograd does not keep such strides
    return dense.copy_(gradient)


def exchange(visit: Visit, consumers: int) -> Tensor | tuple[Tensor, ...]:
    """The value of the visit for one consumer, or one alias of it for each of several."""
    passed: Tensor | tuple[Tensor, ...]
    passed = Exchange.apply(visit, consumers, *visit.roots)  # type: ignore[no-untyped-call]  # torch's own has no types
    return passed


class Overheard(torch.autograd.Function):
    """Hand a model's outputs on unchanged; on the way back note their gradients, before any of them goes further."""

    @staticmethod
    def forward(ctx: Any, noted: Outputs, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.noted, ctx.outputs = noted, [output.detach() for output in outputs]
        ctx.set_materialize_grads(False)
        return tuple([output.detach() for output in outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.noted.note(ctx.outputs, gradients)
        return None, *gradients


def overheard(noted: Outputs, values: Sequence[Any]) -> list[Any]:
    """A model's flat results for the loss, whose gradients will be noted."""
    live = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    passed = list(values)
    if live:
        outputs = Overheard.apply(noted, *[values[i] for i in live])  # type: ignore[no-untyped-call]  # torch's
        for i, output in zip(live, outputs, strict=True):
            passed[i] = output
    return passed


def sum_in_order(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the consumers' gradients, from the last consumer to the first; None where all are.

    The order is fixed because float addition is not associative: a runner that works part by part meets the last
    consumer first, and must get bitwise the same target.
    """
    total: Tensor | None = None
    for gradient in reversed(gradients):
        if gradient is not None:
            total = gradient if total is None else total + gradient
    return total
