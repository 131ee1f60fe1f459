"""A model's names may be anything: they run no code, and change neither the rung nor the numbers."""

import sys
import types

import pytest
import torch
from torch import nn

import dnigraph as dg

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
OWNED: list[str] = []
EVIL = 'a"), getattr(__import__("taken_over"), "own")("{0}"), getattr(self, "a'
NAMES = [
    'a"b',
    "a\nb",
    "a\x00b",
    "\\",
    "\ud800",
    "self",
    "class",
    "lambda",
    "code",
    "graph",
    "meta",
    "_graph",
    "@",
    "a@2",
]


# Names of modules hold no dots, and this file's own name may: code in a name finds `own` here.
taken_over = types.ModuleType("taken_over")
sys.modules["taken_over"] = taken_over


def own(what):
    """What the hostile names call."""
    OWNED.append(what)


taken_over.own = own


class Named(nn.Module):
    """Has a layer and, in another one, a weight of a given name."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.name, self.first, self.last, self.inner = name, nn.Linear(4, 4), nn.Linear(4, 2), nn.Module()
        self.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        self.inner.register_parameter(name, nn.Parameter(torch.full((4,), 1.5)))

    def forward(self, x):
        return self.last(self._modules[self.name](self.first(x)) * self.inner._parameters[self.name])


@pytest.mark.parametrize("rung", ["record", "export", "symbolic", "hooks"])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_captured_on_the_rung_that_was_asked_for(name, rung):
    model, reference = Named(name), Named(name)

    dm = dg.decouple(model, [name], (X,), capture=rung)

    assert dm.plan.capture == rung and dm.plan.crossings[0].name
    assert torch.equal(dm(X), reference(X))
    if rung != "hooks":
        weights = [path for part in dm.parts.values() for path, _ in part.named_parameters()]
        assert f"{name}.0.weight" in weights and f"inner.{name}" in weights  # what users see has the real names


@pytest.mark.parametrize("rung", ["record", "export", "symbolic", "hooks"])
def test_a_name_runs_no_code(rung):
    name = EVIL.format(rung)
    model = nn.Sequential()
    for path, layer in ((name, nn.BatchNorm1d(4)), ("a", nn.Linear(4, 4)), ("b", nn.Linear(4, 2))):
        model.add_module(path, layer)

    dm = dg.decouple(model, [name], (X,), capture=rung)
    dm(X).sum().backward()
    if rung != "hooks":
        run = dg.Local(dm, loss=nn.functional.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1))
        run.step(X, target=torch.zeros(3, 2))

    assert OWNED == []


class Views(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, *views, weights):
        return self.c(sum(w * self.a(view).relu() for w, view in zip(weights, views, strict=True)))


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, x_0, **more):
        return self.c(self.a(x[0]) * x[1] + x_0 + sum(more.values()))


@pytest.mark.parametrize("rung", ["record", "export", "hooks"])
@pytest.mark.parametrize(
    ("model", "args", "kwargs"),
    [
        (Views(), (X, X + 1), {"weights": torch.tensor([0.25, 0.5])}),
        (Twins(), ((X, X + 1), X), {}),
        (Twins(), ((X, X + 1), X), {"x_1": X}),
    ],
)
def test_arguments_may_be_called_anything(model, args, kwargs, rung):
    dm = dg.decouple(model, "a", args, kwargs, capture=rung)

    assert dm.plan.capture == rung
    assert torch.equal(dm(*args, **kwargs), model(*args, **kwargs))
    assert len(set(dm.plan.inputs)) == len(dm.plan.inputs)


@pytest.mark.parametrize("rung", ["record", "export", "hooks"])
def test_keywords_may_be_called_anything(rung):
    args, kwargs = ((X, X + 1), X), {"class": X, "a b": X, 'y=__import__("taken_over").own("keyword")': X}

    dm = dg.decouple(model := Twins(), "a", args, kwargs, capture=rung)

    assert torch.equal(dm(*args, **kwargs), model(*args, **kwargs)) and OWNED == []


def test_heads_in_a_dict_may_be_called_by_keywords():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.heads = nn.ModuleDict({"class": nn.Linear(4, 3), "global": nn.Linear(4, 2)})

        def forward(self, x):
            h = self.a(x).relu()
            return {name: head(h) for name, head in self.heads.items()}

    model = Heads()
    dm = dg.decouple(model, "a", X)

    assert dm.plan.capture == "record" and {"heads.class", "heads.global"} <= set(dict(dm.named_modules()))
    assert torch.equal(dm(X)["class"], model(X)["class"])


def test_a_model_may_have_a_tensor_of_the_name_of_a_constant():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self._constant_0 = nn.Linear(4, 4), nn.Parameter(torch.full((4,), 2.0))
            self.register_buffer("_tensor_constant0", torch.ones(4))

        def forward(self, x):
            return self.a(x) * self._constant_0 + torch.ones(4) * 3 + self._tensor_constant0

    for rung in ("record", "export", "symbolic"):
        model = Own()
        dm = dg.decouple(model, "a", X, capture=rung)
        assert torch.equal(dm(X), model(X)) and hasattr(model, "_tensor_constant0")
