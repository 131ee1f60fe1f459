"""A boundary written from the page alone, in one file, works in every runner, with the same numbers."""

import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kit.models import CLASSES, CONDITION, Chain, labels
from kit.networks import adam
from kit.runners import RUNNERS
from torch import nn

import dnigraph as dg

PAGE = Path(__file__).parents[2] / "docs" / "write-a-boundary.md"
pytestmark = [
    pytest.mark.skipif(not PAGE.exists(), reason="the page is not part of an installation"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
X, Y, CUTS = torch.randn(4, 6), labels(4), ["bn", "fc2"]


@cache
def page():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)  # the point of the test
    return names


class TargetPropagation(dg.Boundary):
    """Difference target propagation (Lee et al. 2015): targets go down through learned inverses."""

    needs = frozenset({"neighbours"})

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.inverse = nn.ModuleList(nn.Linear(spec.width, below.spec.width) for below in self.below)
        self.told = None

    def visit(self, value, seen):
        self.made = made = value.detach()
        losses = [F.mse_loss(inverse(made), b.made) for inverse, b in zip(self.inverse, self.below, strict=True)]

        def settle(target):
            goal, self.told = made - target * len(made) if self.told is None else self.told, None
            with torch.no_grad():
                for inverse, below in zip(self.inverse, self.below, strict=True):
                    below.told = below.made + inverse(goal) - inverse(made)
            return (made - goal) / len(made), *map(torch.ones_like, losses)

        return dg.Visit((value, *losses), None, settle)


class Rebuilds(dg.Boundary):
    """Trains the part below to tell the model's input and the label, by maps of its own."""

    needs = frozenset({"inputs", "label"})

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.rebuild = nn.Linear(spec.width, spec.inputs["x"].shape[1] + CLASSES)

    def visit(self, value, seen):
        goal = torch.cat([seen.inputs[0], F.one_hot(seen.label, CLASSES)], 1)
        loss = F.mse_loss(self.rebuild(value), goal)
        return dg.Visit((value, loss), (None, torch.ones_like(loss)), lambda target: (None, None))


OWN = {
    "direct feedback": lambda spec, context, head: page()["Direct"](spec, context, CLASSES),
    "greedy": lambda spec, context, head: page()["Greedy"](spec, context, CLASSES),
    "linear": lambda spec, context, head: page()["Linear"](spec, context),
    "linear, mixed": dg.warm_up(dg.blend(lambda spec, context, head: page()["Linear"](spec, context), 0.5), 1),
    "target propagation": lambda spec, context, head: TargetPropagation(spec, context),
    "rebuilds": lambda spec, context, head: Rebuilds(spec, context),
}


class Late:
    """`Local` with answers a step late; it is not compared, but must run, settle and be saved."""

    def __init__(self, dm):
        self.dm, self.run = dm, dg.Local(dm, loss=F.cross_entropy, optimizer=adam, late=1)

    def step(self, args, y):
        return self.run.step(*args, target=y).loss


def cut(boundary, **options):
    torch.manual_seed(0)
    return dg.decouple(Chain(), CUTS, (X,), condition=CONDITION, boundary=OWN[boundary], **options)


def weights(model, boundaries):
    return [*model.parameters(), *(p for b in boundaries.values() for p in b.parameters())]


def trained(step, parameters, conditioned, steps=4):
    """The parameters after some steps in the user's own loop."""
    optimizer = adam(parameters)
    for _ in range(steps):
        optimizer.zero_grad()
        with conditioned(Y):
            F.cross_entropy(step(X), Y).backward()
        optimizer.step()
    return parameters


@pytest.mark.parametrize("boundary", OWN)
def test_it_ends_at_the_same_weights_in_every_runner(boundary):
    dm = cut(boundary)
    before = copy.deepcopy(weights(dm.recouple(), dm.boundaries))
    found = {}

    for name, make in RUNNERS.items():
        run = make(copy.deepcopy(dm))
        for _ in range(4):
            run.step((X,), Y)
        found[name] = weights(run.dm.recouple(), run.dm.boundaries)
    hooked = cut(boundary, capture="hooks")
    hooked.load_state_dict(dm.state_dict())
    found["hooks"] = trained(hooked, weights(hooked.recouple(), hooked.boundaries), hooked.conditioned)
    torch._dynamo.reset()
    model, backend = Chain(), dg.Backend(CUTS, condition=CONDITION, boundary=OWN[boundary])
    compiled = torch.compile(model, backend=backend)
    backend.prepare(compiled, X)
    model.load_state_dict(dm.recouple().state_dict())
    for name, own in dm.boundaries.items():
        backend.boundaries[name].load_state_dict(own.state_dict())
    found["compiled"] = trained(compiled, weights(model, backend.boundaries), backend.conditioned)

    for name, ended in found.items():
        assert all(torch.equal(a, b) for a, b in zip(ended, found["drop-in"], strict=True)), name
    moved = [not torch.equal(a, b) for a, b in zip(before, found["drop-in"], strict=True)]
    assert all(moved), "a parameter never learned"


@pytest.mark.parametrize("boundary", OWN)
def test_it_learns_from_late_answers_too(boundary):
    dm = cut(boundary)
    before = copy.deepcopy(weights(dm.recouple(), dm.boundaries))
    run = Late(dm)

    for _ in range(4):
        run.step((X,), Y)
    run.run.settle()

    assert all(not torch.equal(a, b) for a, b in zip(before, weights(dm.recouple(), dm.boundaries), strict=True))


@pytest.mark.parametrize("boundary", OWN)
def test_it_is_checked_probed_copied_and_shown(boundary):
    dm = cut(boundary)

    assert dg.check(dm, X).right
    assert set(dg.probe(dm, X, target=Y, loss=F.cross_entropy).crossings) == set(CUTS)
    assert {crossing.boundary for crossing in dm.plan.crossings} == {dm.boundaries["bn"].kind}
    state = copy.deepcopy(dm).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in dm.state_dict().items())
