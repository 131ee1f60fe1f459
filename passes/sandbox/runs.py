"""One run of a model, observed: what it returned, what it left behind, and where two runs differ.

Every proof of this library is made of these two: `observe` one run, ask for its `differences` to another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.captured_graph import CapturedGraph
from ..graph.equality import equal
from ..graph.pytrees import Nesting, flatten, unflatten
from .snapshot import Snapshot, fresh_copies, tensor_names

_GRADIENT_SEED = 7  # any number: what is sent back must be the same in all runs that are compared

# How far apart sums may be that were added in another order, relative to the largest number nearby.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
_COARSE = 2e-2  # of all other types: half precision

ModelCall = Callable[[list[Any]], Any]  # flat inputs -> what the model returns
Sends = Callable[[int], float]  # the number of a result -> how much of a gradient is sent back from it


class BackwardError(RuntimeError):
    """The results cannot send gradients back together."""


@dataclass
class Run:
    """What one run of a model showed."""

    results: list[Any]
    structure: Nesting  # of the results
    gradients: dict[str, Tensor | None]  # of parameters and inputs that ask for one
    buffers: dict[str, Tensor]  # afterwards, and the other tensors of the model that the run wrote to
    random: Tensor  # the state of torch's generator after the forward pass
    differentiable: list[int]  # the results that a gradient can be sent back from

    def differences(self, other: "Run", exact: bool = True) -> list[str]:
        """What differs between two runs, in words; nothing if they agree.

        Args:
            exact: bit by bit. Otherwise numbers may differ by what another order of additions makes of them.
        """
        same = equal if exact else near
        agreement = {
            "structure of results": self.structure == other.structure,
            "results": len(self.results) == len(other.results) and all(map(same, self.results, other.results)),
            "gradients": not unequal(self.gradients, other.gradients, same),
            "buffers": not unequal(self.buffers, other.buffers, same),
            "random numbers": torch.equal(self.random, other.random),
        }
        return [what for what, agrees in agreement.items() if not agrees]


def unequal(one: dict[str, Any], other: dict[str, Any], same: Callable[[Any, Any], bool] = equal) -> list[str]:
    """The names under which two tables hold different values."""
    return [name for name in one | other if not same(one.get(name), other.get(name))]


def observe(
    call: ModelCall, model: nn.Module, leaves: list[Any], sends: Sends | None = None, before: Snapshot | None = None
) -> Run:
    """Run a model, or what stands for it, on copies of its inputs. It is not put back: see `untouched`.

    Args:
        call: `model_call`, `graph_call`, or another.
        sends: how much of a gradient comes back from each result; None: there is no backward pass.
        before: the state before the run. Tensors of the model that changed since count among its buffers.

    Raises:
        BackwardError: the results cannot send these gradients back.
    """
    inputs, gradients = fresh_copies(leaves), {}
    if sends is not None:
        for p in model.parameters():
            p.grad = None
    results, structure = flatten(call(inputs))
    random = torch.get_rng_state()

    if sends is not None:
        _send_back(results, sends)
        asking = [*model.named_parameters(), *zip(map("input {}".format, range(len(inputs))), inputs, strict=True)]
        gradients = {n: _dense(v.grad) for n, v in asking if isinstance(v, Tensor) and v.requires_grad}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    if before is not None:
        names = tensor_names(model)
        buffers |= {names[id(t)]: t.detach().clone() for t in before.written(same_numbers=False) if id(t) in names}
    detached = [v.detach().clone() if isinstance(v, Tensor) else v for v in results]
    differentiable = [i for i, v in enumerate(results) if isinstance(v, Tensor) and v.requires_grad]
    return Run(detached, structure, gradients, buffers, random, differentiable)


def model_call(model: nn.Module, spec: Nesting) -> ModelCall:
    """A call of a module whose arguments have the structure `spec`."""

    def call(inputs: list[Any]) -> Any:
        args, kwargs = unflatten(inputs, spec)
        return model(*args, **kwargs)

    return call


def graph_call(captured: CapturedGraph, model: nn.Module) -> ModelCall:
    """A call of the graph that stands for a model."""
    graph = captured.module(model)
    return lambda inputs: captured.outputs.build(graph.forward(*filter(torch.is_tensor, inputs)))


def send_all(_: int) -> float:
    """The whole gradient comes back from each result."""
    return 1.0


def near(expected: Any, actual: Any, scale: float | None = None) -> bool:
    """Whether two values are equal up to the rounding of sums in another order, relative to `scale`.

    Args:
        scale: the largest number nearby; None: of `expected`.
    """
    if equal(expected, actual):
        return True
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor) or not expected.is_floating_point():
        return False
    if expected.shape != actual.shape or expected.dtype != actual.dtype or expected.layout != torch.strided:
        return False
    apart = _TOLERANCE.get(expected.dtype, _COARSE) * (largest(expected) if scale is None else scale)
    return torch.allclose(actual, expected, rtol=0, atol=apart, equal_nan=True)


def largest(tensor: Tensor | None) -> float:
    """The largest absolute number in a tensor; 0 where there is none."""
    return 0.0 if tensor is None or not tensor.numel() else float(tensor.detach().abs().double().nan_to_num(0).max())


def _send_back(results: list[Any], sends: Sends) -> None:
    """Send a fixed random gradient back from the results."""
    generator = torch.Generator().manual_seed(_GRADIENT_SEED)
    roots, gradients = [], []
    for i, value in enumerate(results):
        if isinstance(value, Tensor) and value.requires_grad:
            gradient = _random_like(value, generator) * sends(i)
            if sends(i):
                roots.append(value)
                gradients.append(gradient)
    try:
        if roots:
            torch.autograd.backward(roots, gradients)
    except RuntimeError as error:  # e.g. the model writes to what it returns, or to weights that were read before
        raise BackwardError(*error.args) from error


def _random_like(value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_nested:
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    result = value.detach().clone()
    for part in result.unbind():
        part.copy_(torch.randn(part.shape, generator=generator, dtype=torch.float64))
    return result


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Embeddings may have sparse gradients."""
    if gradient is None or gradient.layout in (torch.strided, torch.jagged):
        return gradient
    return gradient.to_dense()
