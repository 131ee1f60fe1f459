"""Nested values of any class come apart and together again."""

import collections
import dataclasses
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from kit.models import CLASSES, Chain

import dnigraph as dg
from dnigraph.passes.graph.pytrees import HOLE, flatten, take_apart, unflatten

T = torch.arange(3.0)


@dataclasses.dataclass
class Record:
    y: Any
    count: int = 2


@dataclasses.dataclass(frozen=True)
class Frozen:
    y: Any


class Pair(NamedTuple):
    first: Any
    second: Any


class Own:
    made = 0

    def __init__(self, y):
        type(self).made += 1
        self.y = y


class Callable(Own):
    def __call__(self):
        return self.y


class Slotted:
    __slots__ = ("extra", "y")

    def __init__(self, y):
        self.y = y


class Store:
    """Refers back to the whole that it is a part of, as the stores of graph data do."""

    def __init__(self, y, whole):
        self.y, self.whole = y, weakref.ref(whole)

    @property
    def key(self):
        return self.__dict__["key"]


class Whole:
    def __init__(self, y):
        self.store = Store(y, self)
        self.stores = {"a": Store(y + 1, self)}
        self.store.__dict__["key"] = "name"


class Names(dict):
    pass


class Rows(list):
    pass


@pytest.mark.parametrize(
    "value",
    [
        T,
        [T, (T, {"a": T, "b": None}), 3, "text"],
        collections.OrderedDict(b=T, a=1),
        Pair(T, Pair(None, T)),
        Record(T),
        Frozen([T]),
        Own(T),
        Names(b=T, a=Rows([T, 1])),
        Own(Record(Own([T, None]))),
        Callable(T),
        Slotted([T]),
        (),
        None,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_is_taken_apart_can_be_built_again(value):
    tensors, tree = take_apart(value)
    doubled = tree.build([t * 2 for t in tensors])

    assert type(doubled) is type(value)
    found, structure = flatten(doubled)
    leaves, original = flatten(value)
    assert structure == original
    for one, other in zip(found, leaves, strict=True):
        assert torch.equal(one, other * 2) if isinstance(other, torch.Tensor) else one == other


def test_constants_stay_in_the_tree_and_tensors_leave_holes():
    tensors, tree = take_apart({"a": T, "b": [3, None, "x"]})

    assert tensors == [T]
    assert tree.constants[0] is HOLE and tree.constants[1:] == (3, None, "x")


def test_an_object_without_tensors_is_a_constant():
    thing = object()

    leaves, _ = flatten([thing, T])

    assert leaves[0] is thing


def test_building_an_object_does_not_run_its_constructor():
    value = Own(T)
    before = Own.made

    tensors, tree = take_apart(value)
    tree.build(tensors)

    assert Own.made == before


def test_functions_and_modules_are_never_taken_apart():
    layer, function = torch.nn.Linear(2, 2), lambda: T

    leaves, _ = flatten([layer, function])

    assert leaves == [layer, function]


def test_what_refers_back_to_its_whole_refers_to_the_new_one():
    whole = Whole(T)

    tensors, tree = take_apart(whole)
    built = tree.build([t * 2 for t in tensors])

    assert torch.equal(built.store.y, T * 2)
    assert built.store.whole() is built
    assert built.stores["a"].whole() is built
    assert built.store.key == "name"
    assert whole.store.whole() is whole


def test_two_objects_of_one_class_have_one_structure():
    _, one = flatten(Whole(T))
    _, other = flatten(Whole(T + 1))

    assert one == other


def test_sizes_among_the_results_come_back_as_sizes():
    leaves, spec = flatten({"h": T, "shape": T.shape, "none": torch.Size([])})

    again = unflatten(leaves, spec)

    assert again["shape"] == T.shape
    assert [type(v) for v in again.values()] == [torch.Tensor, torch.Size, torch.Size]


@pytest.mark.parametrize("capture", ["record", "export"])
def test_a_model_may_return_sizes_and_distributions(capture):
    class Sized(Chain):
        def forward(self, x):
            y = super().forward(x)
            return y, y.shape, torch.distributions.Normal(y, y.exp(), validate_args=False)

    dm = dg.decouple(Sized(), "bn", (torch.randn(4, 6),), boundary="oracle", capture=capture)

    _, shape, law = dm(torch.randn(5, 6))
    assert type(shape) is type(law.batch_shape) is torch.Size
    assert shape == law.batch_shape == (5, CLASSES)
