"""A recording of one run: what goes in and comes out, and nothing that stays behind."""

import array
import copy
import dataclasses
import random
import threading
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, compare, judge
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.errors import CaptureError, GuardMiss
from dnigraph.passes.graph.pytrees import flatten

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass
class Result:
    y: Any
    count: int
    nothing: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


class Bag:
    def __init__(self, y):
        self.y, self.note = y, "plain"

    def __eq__(self, other):
        return torch.equal(self.y, other.y) and self.note == other.note

    __hash__ = None


class Names(dict):
    pass


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y, n: {"y": y, "deep": [y, (y, None)], "n": n, "text": "a"},
        lambda y, n: Result(y, n),
        lambda y, n: Pair(y, Pair(None, y)),
        lambda y, n: Names(a=y, b=None),
        lambda y, n: Bag(y),
        lambda y, n: [Bag(y), Result(Bag(y), 1)],
        lambda y, n: (y, n, 0.5, True, None),
    ],
    ids=["dict", "dataclass", "named tuple", "dict class", "object", "objects in objects", "tuple"],
)
def test_results_of_any_class_come_back_as_they_are(wrap):
    model = Doing(lambda model, x: wrap(model.inner(x), x.shape[0]))
    verdict = judge(model, X)
    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why

    recording = verdict.captured
    found, expected = recording.outputs.build(recording.module(model)(X)), model(X)
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "given",
    [{"a": X, "b": None}, Result(X, 3), Pair(X, X), Names(a=X), Bag(X), [X, [X]]],
    ids=lambda v: type(v).__name__,
)
def test_arguments_of_any_class_go_in(given):
    def reads(model, x):
        held = flatten(x)[0]
        return model.inner(next(v for v in held if isinstance(v, torch.Tensor)))

    verdict = judge(Doing(reads), given)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def test_arguments_passed_by_name_are_inputs_with_that_name():
    model = Doing(lambda model, x, mask=None, scale=1: model.inner(x) * mask * scale)
    verdict = judge(model, X, mask=torch.ones(3, 1), scale=2)

    assert (verdict.same, verdict.more) == ("right", "right")
    assert [n.target for n in verdict.captured.graph.nodes if n.op == "placeholder"] == ["x", "mask"]


def test_one_tensor_given_twice_must_be_given_twice_again():
    model = Doing(lambda model, x, y: model.inner(x) * y)
    graph = capture(model, (X, X), {}, "record").module(model)

    other = X.clone()
    assert torch.equal(graph(other, other)[0], model(other, other))
    with pytest.raises(GuardMiss):
        graph(X, other)


def loaded(model, h):
    layer = nn.Linear(4, 4)
    layer.load_state_dict(model.inner.state_dict())
    return layer(h)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: copy.deepcopy(model.inner)(model.outer(x)) + model.inner(x),
        lambda model, x: nn.Parameter(model.inner(x).detach() * 2) + model.outer(x),
        lambda model, x: F.linear(x, nn.Parameter(model.inner.weight)) + model.outer(x),
        lambda model, x: F.linear(x, nn.Parameter(model.inner.weight * 2, requires_grad=False)) + model.outer(x),
        lambda model, x: nn.ParameterList([model.inner(x).detach()])[0] + model.outer(x),
        loaded,
    ],
    ids=["deep copy", "of a value", "of a weight", "without a gradient", "in a list", "loaded"],
)
def test_parameters_that_the_model_makes_follow_the_weights_and_inputs_that_they_are_made_of(function):
    model = Doing(function)
    verdict = judge(model, X)
    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why

    with torch.no_grad():
        model.inner.weight.mul_(2)
    assert compare(model, verdict.captured, *flatten(((X + 1,), {}))) == "right"


def test_patches_are_gone_after_a_capture():
    def standing():
        own = vars(torch.autograd.Function)["apply"], vars(nn.Parameter)["__new__"]
        return nn.Module.__call__, nn.Module.__setattr__, *own, len

    held = standing()

    with pytest.raises(CaptureError):
        capture(Doing(lambda model, x: model.inner(x) * random.random()), (X,), {}, "record")

    assert standing() == held


def test_other_threads_notice_nothing_of_a_recording():
    inside, seen = threading.Event(), array.array("q")
    other = nn.Linear(4, 4)

    def waits(model, x):
        inside.set()
        thread = threading.Thread(target=lambda: seen.extend(other(torch.ones(len(X), 4)).shape))
        thread.start()
        thread.join()
        return model.inner(x)

    verdict = judge(Doing(waits), X)

    assert verdict.same == "right" and seen
    assert set(zip(seen[::2], seen[1::2], strict=True)) == {(3, 4)}
