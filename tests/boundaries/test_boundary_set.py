"""The holder of a model's boundaries: made once, together or not at all, without a trace in the random state."""

import pytest
import torch
from kit.boundaries import WIDTH

from dnigraph.boundaries.boundary_set import BoundarySet
from dnigraph.boundaries.choices import Choices
from dnigraph.boundaries.surroundings import Surroundings
from dnigraph.heads import HeadError
from dnigraph.heads.conditions import Context
from dnigraph.passes.plan.plan import Crossing, Plan

META = {"dtype": torch.float32, "device": torch.device("cpu")}
METAS = {"a_b": META, "relu": META}
NOWHERE = Surroundings()


def crossing(name, node, **facts):
    return Crossing(name, node, "part_0", ("part_1",), (4, WIDTH), gradient=True, **facts)


def holder(head="linear"):
    return BoundarySet(Choices(head, None, "dni").make, Context())


def test_boundaries_are_made_once_and_found_by_their_crossings_names():
    boundaries = holder()

    first = boundaries.add([crossing("a.b", "a_b")], METAS, training=True, around=NOWHERE)
    more = boundaries.add([crossing("a.b", "a_b"), crossing("relu", "relu")], METAS, training=False, around=NOWHERE)

    assert [b.spec.name for b in (*first, *more)] == ["a.b", "relu"]
    assert list(boundaries.by_name) == ["a.b", "relu"]
    assert first[0].training and not more[0].training
    assert set(boundaries.modules) == {"a_b", "relu"}


def test_a_crossing_without_a_gradient_has_none():
    boundaries = holder()

    assert not boundaries.add([Crossing("relu", "relu", "part_0", ("part_1",))], METAS, training=True, around=NOWHERE)


def test_the_random_state_stays_as_it_was():
    before = torch.get_rng_state()

    holder("mlp").add([crossing("relu", "relu")], METAS, training=True, around=NOWHERE)

    assert torch.equal(torch.get_rng_state(), before)


def test_where_one_cannot_be_made_none_is():
    boundaries = holder({"relu": "linear", "*": "conv"})

    with pytest.raises(HeadError):
        boundaries.add([crossing("relu", "relu"), crossing("a.b", "a_b")], METAS, training=True, around=NOWHERE)

    assert not boundaries.by_name


def test_a_plan_is_described_with_kinds_and_heads():
    boundaries = holder()
    boundaries.add([crossing("relu", "relu")], METAS, training=True, around=NOWHERE)
    plan = Plan("Model", "record", (), (), (crossing("relu", "relu"), crossing("other", "a_b")))

    known, unknown = boundaries.describe(plan).crossings

    assert (known.boundary, known.head) == ("dni", "linear")
    assert known.head_parameters == sum(p.numel() for p in boundaries.modules.parameters())
    assert unknown == plan.crossings[1]


def test_a_copy_has_weights_and_a_label_of_its_own():
    boundaries = holder()
    boundaries.add([crossing("relu", "relu")], METAS, training=True, around=NOWHERE)

    other = boundaries.copy({})  # the memo of the deep copy

    assert other.context is not boundaries.context
    assert other.by_name["relu"].context is other.context
    assert {id(p) for p in other.modules.parameters()}.isdisjoint(id(p) for p in boundaries.modules.parameters())
