"""A model and its captured graph side by side: values, gradients, buffers, inputs, random state, no trace left."""

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError, GuardMiss
from dnigraph.passes.graph.pytrees import flatten, unflatten
from dnigraph.passes.sandbox.example import one_more_row
from dnigraph.passes.sandbox.snapshot import fresh_copies


@dataclass
class Verdict:
    """What a capture came to."""

    same: str  # on the example's own inputs: right, miss, or refused
    more: str = "none"  # on one more row: right, miss, or none where the model itself does not take it
    why: str = ""
    captured: object = None


def judge(model, *args, how="record", **kwargs):
    """Capture a model and compare it with eager. What is silently wrong, and any trace on the model, raises."""
    leaves, spec = flatten((args, kwargs))
    seed_all(5)
    before = fingerprint(model)
    try:
        captured = capture(model, args, kwargs, how)
    except CaptureError as error:
        assert_untouched(before, model)
        return Verdict("refused", why=str(error))
    assert_untouched(before, model)
    verdict = Verdict(compare(model, captured, leaves, spec), captured=captured)
    more = one_more_row(leaves)
    if more is not None and takes(model, more, spec):
        verdict.more = compare(model, captured, more, spec)
    return verdict


def compare(model, captured, leaves, spec, seed=123):
    """`right` or `miss`; an assertion error where the replay differs from eager without a word."""
    graph = captured.module(model)

    def replay(args, kwargs):
        inputs = [v for v in flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        return captured.outputs.build(graph(*inputs))

    expected = traced(model, lambda args, kwargs: model(*args, **kwargs), leaves, spec, seed)
    try:
        found = traced(model, replay, leaves, spec, seed)
    except GuardMiss:
        return "miss"
    for what in expected:
        assert same(expected[what], found[what]), f"{what} differ: {expected[what]} against {found[what]}"
    return "right"


def traced(model, run, leaves, spec, seed):
    """Everything that one run shows, on a copy of what the model holds."""
    kept = [
        (
            {k: _held(v) for k, v in {**module._buffers, **module._parameters}.items()},
            {k: _held(v) for k, v in _plain(module)},
        )
        for module in _open(model)
    ]
    seed_all(seed)
    inputs = fresh_copies(leaves)
    gradients = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    try:
        out, out_spec = flatten(run(*unflatten(inputs, spec)))
        state = torch.get_rng_state()
        roots = [v for v in out if isinstance(v, torch.Tensor) and v.requires_grad]
        generator = torch.Generator().manual_seed(7)
        if roots:
            torch.autograd.backward(roots, [torch.randn(v.shape, generator=generator).to(v) for v in roots])
        return {
            "results": [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in out],
            "structures": [str(out_spec)],
            "random states": [state],
            "gradients": [copy.copy(p.grad) for p in model.parameters()]
            + [v.grad for v in inputs if isinstance(v, torch.Tensor)],
            "buffers": [b.detach().clone() for b in model.buffers()],
            "inputs": [v.detach().clone() if isinstance(v, torch.Tensor) else v for v in inputs],
        }
    finally:
        for p, grad in zip(model.parameters(), gradients, strict=True):
            p.grad = grad
        for module, (buffers, plain) in zip(_open(model), kept, strict=True):
            for table, held in ((module._buffers, buffers), (module.__dict__, plain)):
                table.update({key: value for key, (value, _) in held.items() if key not in module._parameters})
                for tensor, value in held.values():
                    if isinstance(tensor, torch.Tensor):
                        tensor.data.copy_(value)


def takes(model, leaves, spec):
    try:
        traced(model, lambda args, kwargs: model(*args, **kwargs), leaves, spec, 1)
    except Exception:
        return False
    return True


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the generator that models draw from


def same(one, other):
    """Bitwise equality of lists of anything; not-a-number equals itself."""
    return len(one) == len(other) and all(map(_same, one, other))


def _same(x, y):
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
    return x is y or (type(x) is type(y) and bool(x == y or x != x))


def fingerprint(model):
    """Everything that a capture might change: objects by identity, tensors by value too."""
    numpy = str(np.random.get_state())  # noqa: NPY002  # the generator that models draw from
    found = {"random": [torch.get_rng_state(), random.getstate(), numpy]}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            found[path, name] = [id(value), *_content(value)]
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            grad = tensor.grad
            held = [id(tensor), tensor.data_ptr(), tensor.detach().clone(), tensor.requires_grad, id(grad)]
            found[path, "tensor", name] = [*held, tensor._version, None if grad is None else grad.clone()]
    return found


def assert_untouched(before, model):
    after = fingerprint(model)
    changed = [
        key
        for key in before.keys() | after.keys()
        if not (key in before and key in after and same(before[key], after[key]))
    ]
    assert not changed, f"the capture left a trace: {changed}"


def _content(value):
    if isinstance(value, torch.Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        return [*value.keys(), *map(id, value.values())]
    return list(map(id, value)) if isinstance(value, list | set) else []


def _open(model):
    return [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]


def _plain(module):
    return [(k, v) for k, v in vars(module).items() if isinstance(v, int | float | str | torch.Tensor)]


def _held(value):
    return value, value.detach().clone() if isinstance(value, torch.Tensor) else value


class Doing(nn.Module):
    """A model with a few layers that does what a function `(self, x, ...)` says."""

    def __init__(self, function):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.__dict__["function"] = function

    def forward(self, x, *args, **kwargs):
        return self.function(self, x, *args, **kwargs)


class Net(nn.Module):
    """Any layers, called one after the other."""

    def __init__(self, *layers, then=lambda self, x: self.body(x)):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.__dict__["then"] = then

    def forward(self, *args, **kwargs):
        return self.then(self, *args, **kwargs)


def modules_called(captured):
    """The paths of the modules that a captured graph calls, in order."""
    return [str(n.target) for n in captured.graph.nodes if n.op == "call_module"]


def assert_refused(model, *args, why):
    """No recording stands for the model; the reason names the rung and matches `why`, and nothing has changed."""
    before = fingerprint(model)
    with pytest.raises(CaptureError, match=why) as caught:
        capture(model, args, {}, "record")
    assert caught.value.reasons[0].startswith("record: ")
    assert_untouched(before, model)
