"""Put a captured graph that another tool made to the test against the model itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import CaptureError, GuardMiss
from ..graph.captured_graph import CapturedGraph
from ..graph.equality import equal_tensors, same_values
from ..graph.pytrees import flatten, unflatten
from .object_graph import Holdings
from .rng import seed_all
from .snapshot import Snapshot, fresh_copies, untouched

# Kernels behind another front may add in another order.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


@dataclass
class _Seen:
    results: list[Any]
    structure: pytree.TreeSpec
    gradients: list[Any]
    buffers: list[Any]
    random: list[Any]


class Trial:
    """Runs of one model with one kind of call."""

    def __init__(self, model: nn.Module, spec: pytree.TreeSpec):
        self.model, self.spec = model, spec

    def refuse_state(self, leaves: list[Any]) -> None:
        """Run the model twice and see what the second run changes in it.

        Raises:
            CaptureError: it sets attributes or fills containers in every call, which these graphs do not.
        """
        before = Snapshot(self.model)
        self._seen(leaves)
        before.rewind()
        held = Holdings.of(self.model)
        objects = [(o, dict(vars(o))) for o in held.objects.values()]
        sizes = [(c, len(c)) for c in held.containers.values()]
        self._seen(leaves)
        names = [n for o, before in objects for n, v in before.items() if _is_other(v, vars(o).get(n))]
        if names:
            raise CaptureError([f"the model sets '{names[0]}' in every call, which an exported graph does not"])
        if before.drew():
            raise CaptureError(["the model draws from a random number generator of its own"])
        before.rewind()
        if any(len(c) != n for c, n in sizes):
            raise CaptureError(
                ["the model collects things in a container in every call, which an exported graph does not"]
            )

    def takes(self, leaves: list[Any]) -> bool:
        """Whether the model itself runs on these inputs."""
        try:
            self._run(leaves, 1)
        except Exception:
            return False
        return True

    def compare(self, captured: CapturedGraph, leaves: list[Any], seed: int) -> None:
        """Run the model and the captured graph on the same numbers.

        Raises:
            CaptureError: they differ, and no guard says so.
        """
        try:
            found = self._run(leaves, seed, captured)
        except GuardMiss:
            return
        except Exception as error:
            raise CaptureError([f"the exported graph fails: {type(error).__name__}: {error}"]) from error
        expected = self._run(leaves, seed)
        alike = {
            "structure of results": found.structure == expected.structure,
            "results": _near(found.results, expected.results),
            "gradients": _near(found.gradients, expected.gradients),
            "buffers": _near(found.buffers, expected.buffers),
            "random numbers": same_values(found.random, expected.random),
        }
        if wrong := [name for name, same in alike.items() if not same]:
            raise CaptureError([f"the exported graph gives other {', '.join(wrong)} than the model"])

    def _run(self, leaves: list[Any], seed: int, captured: CapturedGraph | None = None) -> _Seen:
        with untouched(self.model):
            seed_all(seed)
            return self._seen(leaves, captured)

    def _seen(self, leaves: list[Any], captured: CapturedGraph | None = None) -> _Seen:
        inputs, parameters = fresh_copies(leaves), list(self.model.parameters())
        for p in parameters:
            p.grad = None
        out, structure = flatten(self._call(inputs, captured))
        random = [torch.get_rng_state()]
        _send_back(out)
        gradients = [None if v.grad is None else v.grad.clone() for v in (*parameters, *_tensors(inputs))]
        buffers = [b.detach().clone() for b in self.model.buffers()]
        results = [v.detach() if isinstance(v, torch.Tensor) else v for v in out]
        return _Seen(results, structure, gradients, buffers, random)

    def _call(self, inputs: list[Any], captured: CapturedGraph | None) -> Any:
        if captured is not None:
            return captured.outputs.build(captured.module(self.model).forward(*_tensors(inputs)))
        args, kwargs = unflatten(inputs, self.spec)
        return self.model(*args, **kwargs)


def _tensors(values: list[Any]) -> list[torch.Tensor]:
    return [v for v in values if isinstance(v, torch.Tensor)]


def _send_back(results: list[Any]) -> None:
    roots = [v for v in _tensors(results) if v.requires_grad]
    generator = torch.Generator().manual_seed(7)
    if not roots:
        return
    try:
        torch.autograd.backward(roots, [torch.randn(v.shape, generator=generator).to(v) for v in roots])
    except RuntimeError as error:  # it writes to what it returns, or to weights that were read before
        said = str(error).partition(":")[0]
        raise CaptureError([f"no gradient can be sent back from all results, to compare it: {said}"]) from error


def _is_other(old: Any, new: Any) -> bool:
    if isinstance(old, int | float | bool | str):
        return type(old) is not type(new) or old != new
    return isinstance(old, torch.Tensor | np.ndarray) and new is not old


def _near(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(x: Any, y: Any) -> bool:
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return type(x) is type(y) and bool(x == y or x != x)
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if not x.is_floating_point() or x.layout != torch.strided:
        return equal_tensors(x, y)
    largest = float(y.abs().nan_to_num(0).max()) if y.numel() else 0.0
    return torch.allclose(x, y, rtol=0, atol=_TOLERANCE.get(x.dtype, 2e-2) * largest, equal_nan=True)
