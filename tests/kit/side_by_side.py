"""A decoupled model beside an untouched twin, on the same calls: what differs, in words."""

import copy
import random
import warnings

import numpy as np
import torch
from torch import nn

import dnigraph as dg
from dnigraph.passes.graph.equality import equal
from dnigraph.passes.graph.pytrees import flatten


class Net(nn.Module):
    """Two layers around what a test does between them: `forward(net, x, *args)` calls `net.a` and `net.c`."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.a, self.c = nn.Linear(8, 8), nn.Linear(8, 3)
        self.between = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, *args, **kwargs):
        return self.between(self, x, *args, **kwargs)


def x(rows=4, seed=0, *sizes):
    """Inputs of [rows, *sizes, 8]."""
    return torch.randn(rows, *sizes, 8, generator=torch.Generator().manual_seed(seed))


def twins(make, seed=0):
    """Two models alike, made apart from each other so that they share nothing."""
    made = []
    for _ in range(2):
        torch.manual_seed(seed)
        made.append(make())
    return made


def differences(make, calls, cut="a", before_each=lambda model, i: None, quiet=True, **options):
    """Decouple on the first call with true gradients, then run all calls on the twin and on the rewrite.

    Args:
        calls: tuples of positional arguments; a dict at the end is for keywords.
        before_each: done to both models before call `i`.
        quiet: warnings are ignored.

    Returns:
        One line for each call and thing that differs, and the decoupled model.
    """
    twin, model = twins(make)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        dm = dg.decouple(model, cut, *_split(calls[0]), boundary="oracle", **options)
        found = []
        for i, call in enumerate(calls):
            seen = []
            for module, owner in ((twin, twin), (dm, model)):
                before_each(owner, i)
                seen.append(_seen(module, owner, call, i))
            found += [f"call {i}: {what}" for what in seen[0] if not equal(seen[0][what], seen[1][what])]
    return found, dm


def _seen(module, owner, call, i):
    random.seed(i), np.random.seed(i), torch.manual_seed(i)  # noqa: NPY002  # those that models draw from
    args, kwargs = copy.deepcopy(_split(call))
    owner.zero_grad()
    results = flatten(module(*args, **kwargs))[0]
    total = sum(r.sum() for r in results if isinstance(r, torch.Tensor) and r.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()
    return {
        "results": [r.detach() if isinstance(r, torch.Tensor) else r for r in results],
        "gradients": [p.grad for p in owner.parameters()],
        "state": [v.detach().clone() for v in owner.state_dict().values()],
        "random numbers": torch.get_rng_state(),
    }


def _split(call):
    return (call[:-1], call[-1]) if isinstance(call[-1], dict) else (call, {})
