"""What the code of a model reads outside of the model is found, by its name, and put back after a run."""

import contextvars
import functools
import os
import sys
import types
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from kit import models
from torch import kaiser_window, nn
from torch.nn.functional import gelu

import dnigraph as dg
from dnigraph.passes.sandbox.outside import prints, variables
from dnigraph.passes.sandbox.snapshot import untouched

NUMBER, TABLE, ENDS = 1, {"a": 1}, 3
LEVEL = contextvars.ContextVar("LEVEL", default=0)
NOTES = []
others = types.ModuleType("helpers")
exec("FACTOR = 2\ndef twice(x): return x * FACTOR", vars(others))
note = NOTES.append


def found(function):
    """The variables of a model that has this function, by name."""
    model = nn.Module()
    model.function = function
    return {variable.name: variable.value for variable in variables(model)}


def reads_globals(x):
    return x * NUMBER + TABLE["a"]


def helper(x):
    return x * NUMBER


helper.calls = 3


def calls_a_helper(x):
    return helper(x)


def has_a_default(x, seen=[], scale=2):  # noqa: B006  # a list that lives from call to call
    return x * scale + len(seen)


def notes_down(x):
    note(x)
    return x


def reads_a_context(x):
    return x * LEVEL.get()


def reads_the_environment(x):
    return x * len(os.environ)


def reads_a_module_of_its_own(x):
    return x * models.CLASSES


def reads_modules_of_others(x):
    return x * torch.pi * sys.maxsize * len(os.sep)


def reads_in_a_function_that_it_makes(x):
    return (lambda y: y * NUMBER)(x)


def calls_what_others_made(x):
    return gelu(F.relu(x)) * kaiser_window(4) * deepcopy(x)


def calls_helpers_of_a_module(x):
    return models.Chain(x), others.twice(x)


def appends_to_what_it_is_given(x, add=NOTES.append):
    add(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reads_globals, {"NUMBER": 1, "TABLE": TABLE}),
        (calls_a_helper, {"helper.calls": 3, "NUMBER": 1}),
        (has_a_default, {"an argument's default in has_a_default": []}),
        (notes_down, {"note": NOTES}),
        (reads_a_context, {"LEVEL": None}),  # where nobody has set it, what it stands at by default is no change
        (reads_the_environment, {"os.environ": os.environ}),
        (reads_a_module_of_its_own, {"kit.models.CLASSES": models.CLASSES}),
        (reads_modules_of_others, {}),
        (reads_in_a_function_that_it_makes, {"NUMBER": 1}),
        (calls_what_others_made, {}),
        (calls_helpers_of_a_module, {"FACTOR": 2}),
        (appends_to_what_it_is_given, {}),
        (functools.partial(max, 0), {}),
        (functools.partial(F.leaky_relu, inplace=True), {}),
        (functools.partial(reads_globals), {"NUMBER": 1, "TABLE": TABLE}),
        (functools.wraps(helper)(lambda x: helper(x)), {"NUMBER": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_variable_that_code_names_is_found_with_its_value(function, expected):
    assert found(function) == expected


def test_functions_that_name_functions_are_followed_four_steps_far():
    one, two, three, four, five, six = range(1, 7)

    def a(x):
        return b(x) * one

    def b(x):
        return c(x) * two

    def c(x):
        return d(x) * three

    def d(x):
        return e(x) * four

    def e(x):
        return f(x) * five

    def f(x):
        return x * six

    assert found(a) == {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


def test_a_variable_that_has_no_value_yet_is_none_and_those_beside_it_are_found():
    def reading(begun=False):
        first, last = 1, 2
        if begun:
            later = 3

        def read(x):
            return x * first * later * last

        return read

    assert found(reading()) == {"first": 1, "last": 2}


def counter():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return x * count

    return counted


def test_each_function_that_one_maker_made_has_variables_of_its_own():
    one, other = counter(), counter()
    one(1)
    model = nn.Module()
    model.one, model.other = one, other

    assert sorted(variable.value for variable in variables(model)) == [0, 1]


def test_a_variable_that_two_functions_share_is_found_once():
    count = 0

    def reads(x):
        return x * count * LEVEL.get()

    def reads_too(x):
        return x + count + LEVEL.get()

    model = nn.Module()
    model.one, model.other = reads, reads_too

    assert sorted(variable.name for variable in variables(model)) == ["LEVEL", "count"]


def decorated(function):
    @functools.wraps(function)
    def run(*args):
        return function(*args)

    return run


class Counting(nn.Module):
    made, _hidden, __slots = 0, {}, ()

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    @property
    def by_property(self):
        return NUMBER

    @staticmethod
    def by_static_method():
        return TABLE

    @classmethod
    def by_class_method(cls):
        return NOTES

    def by_method(self):
        return LEVEL, self.forward, self.by_decorated_method

    @decorated
    def by_decorated_method(self):
        return ENDS

    def not_named(self):
        return models.CLASSES

    def forward(self, x):
        self.by_static_method(), self.by_class_method()
        return self.fc(x) * self.by_property, self.by_method


class Below(Counting):
    pass


@pytest.mark.parametrize("kind", [Counting, Below])
def test_the_methods_that_a_forward_names_are_followed_and_classes_have_variables(kind):
    assert {variable.name: variable.value for variable in variables(kind())} == {
        "NUMBER": 1,
        "TABLE": TABLE,
        "NOTES": NOTES,
        "LEVEL": None,
        "ENDS": 3,
        "Counting.made": 0,
        "Counting._hidden": {},
    }


def test_a_model_of_torch_reads_nothing_outside():
    assert variables(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 1))) == []


def test_a_model_prints_where_its_code_says_so():
    def speaks(x):
        print(x)

    speaking, silent = nn.Sequential(nn.Module()), nn.Module()
    speaking[0].function, silent.function = speaks, reads_globals

    assert prints(speaking) is True and prints(silent) is False


def test_variables_of_all_kinds_are_put_back_after_a_run(monkeypatch):
    counted, here = counter(), sys.modules[__name__]

    class Model(nn.Module):
        steps = 0

        def forward(self, x):
            global NUMBER
            NUMBER += 1
            LEVEL.set(LEVEL.get() + 5)
            type(self).steps += 1
            counted(x)
            helper.calls += 1
            note(x)
            return helper(x) * models.CLASSES

    def state():
        count = counted.__closure__[0].cell_contents
        return here.NUMBER, LEVEL.get(), Model.steps, count, helper.calls, len(NOTES), models.CLASSES

    model, level = Model(), LEVEL.set(2)
    try:
        before = state()
        with untouched(model):
            model(1)
            models.CLASSES += 1
            assert state() == tuple(value + (5 if i == 1 else 1) for i, value in enumerate(before))

        assert state() == before
    finally:
        LEVEL.reset(level)


def test_a_counter_in_a_closure_is_told_by_its_name_and_stands_where_it_stood():
    counts = [counter(), counter()]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.idle, self.counted = counts

        def forward(self, x):
            return self.b(self.a(x)) * (self.counted(1) > 0)

    with pytest.raises(dg.CaptureError) as caught:
        dg.plan(Model(), "a", (torch.randn(3, 4),), capture="record")

    assert str(caught.value).count("'count', a variable outside of the model, changes with every call") == 1
    assert [function.__closure__[0].cell_contents for function in counts] == [0, 0]
