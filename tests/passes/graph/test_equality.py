"""Two values are equal by what they hold, whatever their classes say or do not say."""

import functools
import threading
import types
import weakref
from decimal import Decimal

import numpy as np
import pytest
import torch

from dnigraph.passes.graph.equality import equal

T = torch.arange(3.0)


class Log:
    """Says nothing of when two are equal."""

    def __init__(self, *lines):
        self.lines = list(lines)


class Ring:
    def __init__(self, number):
        self.number, self.me = number, [self]


class Pair:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left, self.right = left, right


def scaled(by):
    return lambda x: x * by


def counting(end):
    yield from range(end)


MAKERS = {
    "an object": Log,
    "an object in an object": lambda v: Log(Log(v)),
    "an object that holds itself": Ring,
    "slots": lambda v: Pair(v, 1),
    "an exception": lambda v: ValueError("wrong", v),
    "an array": lambda v: np.array([v, np.nan]),
    "an array of objects": lambda v: np.array([None, Log(v)], dtype=object),
    "arrays in a namespace": lambda v: types.SimpleNamespace(a=np.array([v, v])),
    "a function": scaled,
    "a function of a tensor": lambda v: scaled(T + v),
    "a function with a default": lambda v: lambda x=v: x,
    "a method": lambda v: Log(v).lines.append,
    "a partial": lambda v: functools.partial(max, v),
    "a generator": counting,
    "a zip": lambda v: zip([v], [1], strict=True),
    "an iterator": lambda v: iter([v, v]),
    "tensors in a dict": lambda v: {"a": [T + v]},
    "a dict of objects": lambda v: {"a": Log(v)},
    "a set": lambda v: {v, "a"},
    "bytes": lambda v: bytearray([v]),
    "nested tensors": lambda v: torch.nested.nested_tensor([T + v, T[:2]], layout=torch.jagged),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_holds_the_same_is_equal_and_what_holds_something_else_is_not(make):
    assert equal(make(1), make(1))
    if make is not MAKERS["a method"]:  # a method of a list shows nothing of it
        assert not equal(make(1), make(2))


def test_values_of_two_types_are_not_equal():
    assert not equal(1, 1.0)
    assert not equal(True, 1)
    assert not equal([1], (1,))
    assert not equal(T, T.double())
    assert not equal(np.arange(3), np.arange(3.0))


def test_not_a_number_equals_itself():
    assert equal(float("nan"), float("nan"))
    assert equal(complex("nan"), complex("nan"))
    assert not equal(float("nan"), 1.0)
    assert not equal(1.0, float("nan"))


def test_two_functions_of_other_code_are_not_equal():
    assert not equal(lambda x: x + 1, lambda x: x + 2)


def test_what_shows_nothing_is_equal_by_its_type():
    assert equal(threading.Lock(), threading.Lock())
    assert equal(object(), object())
    one = Log(1)
    assert equal(weakref.ref(one), weakref.ref(one))


def test_nothing_raises_where_a_class_answers_with_something_else():
    class Odd:
        def __init__(self, value):
            self.value = value

        def __eq__(self, other):
            return np.array([True, True])

        __hash__ = None

    assert equal(Odd(1), Odd(1))
    assert not equal(Odd(1), Odd(2))


class Ruler:
    def __init__(self, unit):
        self.unit = unit

    def length(self, x):
        return x / self.unit

    def width(self, x):
        return x * self.unit


def test_a_bound_method_is_its_function_and_what_it_is_bound_to():
    assert equal(Ruler(1).length, Ruler(1).length) is True
    assert equal(Ruler(1).length, Ruler(2).length) is False
    assert equal(Ruler(1).length, Ruler(1).width) is False


@pytest.mark.parametrize("other", [{"b": 1}, {"a": 1, "b": 1}, {}])
def test_dicts_of_other_keys_are_not_equal_though_they_hold_the_same(other):
    assert equal({"a": 1}, other) is False


def test_a_variable_that_has_no_value_yet_is_equal_to_another_such():
    def reading(begun=False):
        if begun:
            later = 1
        return lambda: later

    assert equal(reading(), reading()) is True


def test_tensors_of_another_layout_shape_or_device_are_not_equal():
    assert equal(T, T.to_sparse()) is False
    assert equal(T, T.to("meta")) is False
    assert equal(T.to("meta"), (T + 1).to("meta")) is True
    assert equal(T, T[None]) is False
    assert equal(T.to_sparse(), (T * 2).to_sparse()) is False
    assert equal(T.to_sparse(), T.clone().to_sparse()) is True


@pytest.mark.parametrize("nan", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, complex("nan")])])
def test_not_a_number_in_a_tensor_equals_itself_alone(nan):
    assert equal(nan, nan.clone()) is True
    assert equal(nan, torch.ones_like(nan)) is False
    assert equal(torch.ones_like(nan), nan) is False


def test_not_a_number_of_a_class_that_says_when_two_are_equal_equals_itself_alone():
    nan = Decimal("nan")

    assert equal(nan, Decimal("nan")) is True
    assert equal(nan, Decimal(1)) is False and equal(Decimal(1), nan) is False
