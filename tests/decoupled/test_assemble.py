"""Modules that show tensors of a model, and follow when the user replaces these."""

import pytest
import torch
from torch import nn

import dnigraph as dg
from dnigraph.decoupled.assemble import Assembly, View


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.plain = nn.Parameter(torch.ones(2)), torch.ones(3)
        self.register_buffer("seen", torch.zeros(4))


def view():
    owner = Owner()
    shown = View(owner)
    for name in ("weight", "seen", "plain"):
        shown.show(name)
    return owner, shown


def test_a_view_has_the_tensors_of_its_owner_and_no_others():
    owner, shown = view()

    assert shown.weight is owner.weight and shown.seen is owner.seen and shown.plain is owner.plain
    assert list(shown.state_dict()) == ["weight", "seen"]
    with pytest.raises(AttributeError, match="'View' object has no attribute 'other'"):
        _ = shown.other


@pytest.mark.parametrize("name", ["weight", "seen"])
def test_a_view_follows_to_a_tensor_of_the_same_kind(name):
    owner, shown = view()
    present = getattr(owner, name).detach() + 1
    setattr(owner, name, nn.Parameter(present) if name == "weight" else present)

    assert shown.follow() is True
    assert getattr(shown, name) is getattr(owner, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight", nn.Parameter(torch.ones(3))),
        ("weight", nn.Parameter(torch.ones(2), requires_grad=False)),
        ("weight", nn.Parameter(torch.ones(2, dtype=torch.float64))),
        ("weight", nn.Parameter(torch.ones(2, device="meta"))),
        ("weight", None),
        ("seen", torch.zeros(5)),
        ("plain", torch.ones(3)),  # a graph may know its numbers
    ],
)
def test_a_tensor_of_another_kind_is_told(name, value):
    owner, shown = view()
    before = getattr(shown, name)
    setattr(owner, name, value)

    assert shown.follow() is False
    assert getattr(shown, name) is before
    shown.refresh()
    assert (name == "weight" and value is None) or getattr(shown, name) is getattr(owner, name)


def test_a_plain_tensor_that_is_gone_is_told():
    owner, shown = view()
    del owner.plain

    assert shown.follow() is False


CHANGES = {
    "replaced": lambda model: model.table.__setitem__("t", torch.ones(2)),
    "gone": lambda model: model.table.clear(),
    "in a list that is shorter": lambda model: model.listed.pop(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_constant_that_lies_in_a_table_of_the_model_is_followed_there(change):
    model = Owner()
    model.table, model.listed = {"t": torch.zeros(2)}, [0, torch.zeros(2)]
    assembly = Assembly(model, {"one": model.table["t"], "two": model.listed[1]})

    assert assembly.follow() is True
    CHANGES[change](model)
    assert assembly.follow() is False


def test_a_decoupled_model_is_told_of_a_parameter_of_another_kind():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.factor = nn.Linear(4, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.b(self.a(x) * self.factor)

    model = Scaled()
    assembly = dg.decouple(model, "a", (torch.ones(2, 4),), boundary="oracle").specialization.assembly
    assert assembly.follow() is True

    model.factor = nn.Parameter(torch.ones(1))

    assert assembly.follow() is False
