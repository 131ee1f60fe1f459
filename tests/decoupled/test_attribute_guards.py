"""A model that its user changes after it was decoupled: the graphs follow, or the model is captured again."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import dnigraph as dg
from dnigraph.decoupled.attribute_guards import AttributeGuards, SettingsWarning
from dnigraph.decoupled.cache import PATHS

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Plain:
    """A configuration."""

    def __init__(self, deep=None, inner=None):
        self.scale, self.deep, self.inner = 2.0, deep, inner


class Block(nn.Module):
    """Reads plain values, functions, tensors of its own, and modules."""

    factor = 1.0

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.own, self.temperature, self.bent = nn.Parameter(torch.ones(4)), 1.0, True
        self.register_buffer("shift", torch.ones(4))
        self.config, self.options, self.last = Plain(inner=Plain([1.0])), {"power": 1}, 0
        self.bounds, self.weights, self.act, self.tables = (-9.0, 9.0), [1.0, 1.0], torch.sin, {"t": torch.ones(4)}
        self.limit = nn.Hardtanh()

    def forward(self, x):
        self.last = x.shape[0]
        h = self.a(x) / self.temperature * self.config.scale * self.tables["t"] * self.factor
        h = self.act(h).clamp(*self.bounds) * self.weights[0] / self.config.inner.deep[0]
        with torch.autocast("cpu", torch.bfloat16):
            h = self.limit(h)
        h = (h.relu() if self.bent else h) ** self.options["power"]
        return self.b(h) * self.own + self.shift


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.end = Block(), nn.Linear(4, 4)

    def forward(self, x):
        return self.end(self.block(x))


def decoupled():
    return dg.decouple(Model(), "block.a", (X,), boundary="oracle")


def replaced(model):
    model.block.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU())


CHANGES = {
    "a number": lambda m: setattr(m.block, "temperature", 3.0),
    "a flag": lambda m: setattr(m.block, "bent", False),
    "a configuration": lambda m: setattr(m.block.config, "scale", 5.0),
    "an entry of a list": lambda m: m.block.weights.__setitem__(0, 3.0),
    "a list": lambda m: setattr(m.block, "weights", [3.0]),
    "a tuple": lambda m: setattr(m.block, "bounds", (-0.1, 0.1)),
    "a function": lambda m: setattr(m.block, "act", torch.tanh),
    "a number of numpy": lambda m: setattr(m.block, "temperature", np.float32(3.0)),
    "a configuration inside another": lambda m: m.block.config.inner.deep.__setitem__(0, 2.0),
    "another configuration": lambda m: (
        setattr(m.block, "config", Plain([4.0])) or setattr(m.block.config, "inner", Plain([2.0]))
    ),
    "a number on the class": lambda m: setattr(type(m.block), "factor", 3.0),
    "a tensor in a dict": lambda m: m.block.tables.update(t=torch.full((4,), 2.0)),
    "a layer that is not called as it is": lambda m: setattr(m.block.limit, "max_val", 0.1),
    "an entry of a dict": lambda m: m.block.options.update(power=2),
    "a parameter": lambda m: setattr(m.block, "own", nn.Parameter(torch.full((4,), 7.0))),
    "a buffer": lambda m: setattr(m.block, "shift", torch.full((4,), 7.0)),
    "a module": replaced,
    "a hook on a block": lambda m: m.block.register_forward_hook(lambda _m, _i, out: out * 2),
    "a checkpoint that takes the place": lambda m: m.load_state_dict(
        {key: value + 1 for key, value in m.state_dict().items()}, assign=True
    ),
    "the type, there and back": lambda m: m.double().float(),
    "the type of the weights": lambda m: m.to(torch.float64),
}


@pytest.mark.filterwarnings("ignore::dnigraph.decoupled.attribute_guards.SettingsWarning")
@pytest.mark.parametrize("what", CHANGES)
def test_what_the_user_changes_on_the_model_counts_in_the_next_call(what, monkeypatch):
    monkeypatch.setattr(Block, "factor", 1.0)  # and back afterwards
    dm = decoupled()
    before = dm(X)

    CHANGES[what](dm.original)
    x = X.to(dm.original.end.weight.dtype)

    assert torch.equal(dm(x), dm.original(x))
    assert what.startswith("the type") or not torch.equal(dm(x), before)
    assert {id(p) for p in dm.parameters()} == {id(p) for p in dm.original.parameters()}
    assert dg.check(dm, x).right


def test_a_changed_value_is_warned_of():
    dm = decoupled()
    dm.original.block.temperature = 2.0

    with pytest.warns(SettingsWarning, match="captured again"):
        dm(X)


@pytest.mark.filterwarnings("ignore::dnigraph.decoupled.attribute_guards.SettingsWarning")
def test_graphs_are_kept_for_a_few_settings_only():
    dm = decoupled()

    for step in range(PATHS + 3):
        dm.original.block.temperature = 1.0 + step
        assert torch.equal(dm(X), dm.original(X))

    assert sum(1 for _ in dm._cache) == PATHS + 1  # and that of eval mode
    assert len(dm.plan.parts) == 2


def test_what_a_forward_sets_is_no_setting():
    dm = decoupled()
    recorded = sum(1 for _ in dm._cache)

    for rows in (1, 3, 2):
        dm.original(X[:rows])  # sets `last`
        dm(X[:rows])
        copy.deepcopy(dm)(X[:rows])

    assert sum(1 for _ in dm._cache) == recorded


def test_a_part_that_learns_again_is_cut_again():
    model = Model()
    dm = dg.decouple(model, "block.b", (X,), condition=dg.one_hot(3), boundary=dg.dni(guard=False))

    model.block.requires_grad_(False)
    dm(X)
    model.block.requires_grad_(True)
    with dm.conditioned(torch.tensor([0, 1, 2])):
        dm(X).sum().backward()

    assert not model.block.a.weight.grad.any()  # the head's first word is zero


def test_a_script_inside_keeps_its_own_table_of_modules():
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
            self.c = nn.Linear(4, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    model = Scripted()
    x = torch.randn(5, 4)

    with pytest.warns(dg.UnconditionedWarning):
        dm = dg.decouple(model, "a", (x,))

    assert torch.equal(dm(x), model(x))


def test_a_value_that_is_gone_makes_the_guards_look_anew():
    model = Model()
    model.block.options = {"power": 1, "other": 2}
    guards = AttributeGuards(model)
    before = guards.now()

    del model.block.options["other"]
    model.block.options["another"] = 2  # as many as before

    assert guards.now() == AttributeGuards(model).now() != ()
    model.block.options["another"] = 3
    assert guards.now() != before
