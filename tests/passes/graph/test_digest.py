"""Digests are equal for values that code cannot tell apart, and for no others."""

import array
import collections
import dataclasses
import enum
import functools
import types
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from dnigraph.passes.graph.digest import LIMIT, TooLargeError, digest


class Private:
    __slots__ = ("__gain",)

    def __init__(self, gain):
        self.__gain = gain


class Both(Private):  # it has attributes, too
    pass


@dataclasses.dataclass
class Beside(Private):
    name: str = ""

    def __init__(self, gain):
        super().__init__(gain)
        self.name = "same"


@dataclasses.dataclass(slots=True)
class Slots:
    gain: float = 1.0


class Plain:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class Color(enum.Enum):
    RED, BLUE = 1, 2


def scaled(gain, by=1.0):
    return lambda x: x * gain * by


Point = collections.namedtuple("Point", "x y")
OTHERS = {
    "a zero with a sign": (0.0, -0.0),
    "numbers of other types": (1, True, 1.0, np.float32(1), np.float64(1), "1", b"1", 1 + 0j, Fraction(1), Decimal(1)),
    "text": ("a", "b"),
    "arrays": (np.zeros(3), np.ones(3), np.zeros(3, np.float32), np.zeros((3, 1))),
    "long arrays": (np.zeros(1200), np.eye(1, 1200, 600)[0]),
    "arrays of objects": (np.array([Plain(a=1)], object), np.array([Plain(a=2)], object)),
    "bytes that change": (bytearray(b"a"), bytearray(b"b"), array.array("f", [1]), array.array("d", [1])),
    "containers of other types": ([1], (1,), {1}, frozenset({1}), collections.deque([1]), {1: None}),
    "orders of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}, collections.OrderedDict(a=1, b=2)),
    "defaults of a dict": (collections.defaultdict(int), collections.defaultdict(float)),
    "named tuples": (Point(1, 2), (1, 2), Point(1, 3)),
    "slices and ranges": (slice(1), slice(2), range(1), range(2)),
    "members": (Color.RED, Color.BLUE),
    "objects": (Plain(a=1), Plain(a=2), Plain(b=1), types.SimpleNamespace(a=1)),
    "slots": (Slots(1.0), Slots(2.0)),
    "slots with a private name": (Private(1.0), Private(2.0)),
    "slots below attributes": (Both(1.0), Both(2.0)),
    "slots that are no fields of a dataclass": (Beside(1.0), Beside(2.0)),
    "objects deep inside": (Plain(a=[{"b": Plain(c=(1,))}]), Plain(a=[{"b": Plain(c=(2,))}])),
    "closures": (scaled(1.0), scaled(2.0)),
    "defaults": (lambda x, g=1.0: x * g, lambda x, g=2.0: x * g),
    "partials": (functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1)),
    "types": (torch.float32, torch.float64, int, float, torch.device("cpu")),
    "tensors": (torch.zeros(1), torch.zeros(1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_have_other_digests(name):
    digests = [digest(value) for value in OTHERS[name]]

    assert len(set(digests)) == len(digests)


ALIKE = {
    "a nan": lambda: float("nan"),
    "an array": lambda: np.arange(5.0),
    "an array with nan": lambda: np.array([np.nan]),
    "an object": lambda: Plain(a=[1, {"b": (2.0, None)}], c=np.float32(2)),
    "a set": lambda: {"a", "b", 3},
    "a closure": lambda: scaled(2.0),
    "slots": lambda: Slots(3.0),
    "a dict": lambda: collections.defaultdict(list, a=[1]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_equal_values_have_equal_digests(name):
    assert digest(ALIKE[name]()) == digest(ALIKE[name]())
    assert hash(digest(ALIKE[name]())) == hash(digest(ALIKE[name]()))


def test_values_that_hold_each_other_have_digests():
    def ring(content):
        one, other = Plain(content=content), Plain(items=[])
        one.other, other.one = other, one
        other.items.append(one)
        return one

    assert digest(ring(1)) == digest(ring(1)) != digest(ring(2))


def test_a_module_and_an_object_without_fields_are_themselves():
    layer, thing = nn.Linear(2, 2), object()

    assert digest([layer, thing]) == digest([layer, thing])
    assert digest(layer) != digest(nn.Linear(2, 2)) and digest(thing) != digest(object())


def test_what_is_too_large_says_so():
    with pytest.raises(TooLargeError, match=str(LIMIT)):
        digest([[i] for i in range(LIMIT)])


def test_as_many_values_as_the_limit_says_have_a_digest_and_one_more_has_none():
    def lists(count):
        return [[] for _ in range(count - 1)]  # and the list that holds them

    assert digest(lists(LIMIT))
    with pytest.raises(TooLargeError):
        digest(lists(LIMIT + 1))


def test_an_array_counts_as_an_eighth_of_its_numbers():
    assert digest([np.zeros(8 * (LIMIT - 3)), []])  # with the list, the array and the empty list: as many as can be
    with pytest.raises(TooLargeError):
        digest([np.zeros(8 * (LIMIT - 2)), []])
