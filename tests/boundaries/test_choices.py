"""From the user's choices to boundaries, by name and by factory."""

from types import SimpleNamespace

import pytest
import torch
from kit.boundaries import CLASSES, boundary
from torch import nn

from dnigraph.boundaries import (
    BoundaryError,
    blend,
    dni,
    oracle,
    silent,
    warm_up,
)
from dnigraph.boundaries.choices import Choices, UnconditionedWarning, warn_unconditioned
from dnigraph.boundaries.surroundings import Surroundings
from dnigraph.heads import mlp
from dnigraph.heads.conditions import Context, one_hot


@pytest.mark.parametrize(
    ("choice", "kind", "head"),
    [("dni", "dni", "mlp 6"), ("oracle", "oracle", None), ("local-loss", "local-loss", "classifier 6")],
)
def test_a_boundary_says_what_it_is(choice, kind, head):
    crossing = boundary(choice, mlp(hidden=6), condition=one_hot(CLASSES))

    assert (crossing.kind, crossing.head_name) == (kind, head)
    assert crossing.head_parameters == sum(p.numel() for p in crossing.parameters())
    assert "layer2" in repr(crossing)


def test_an_unknown_boundary_is_named_with_its_neighbours():
    with pytest.raises(BoundaryError, match=r"no boundary 'oracel'; nearest: oracle.*dni, oracle, local-loss"):
        boundary("oracel")


@pytest.mark.parametrize("choice", [3, nn.Linear(1, 1)])
def test_a_boundary_that_is_neither_name_nor_factory_is_refused(choice):
    with pytest.raises(BoundaryError, match="a name or a factory"):
        boundary(choice)


def test_a_factory_must_make_a_boundary():
    with pytest.raises(BoundaryError, match="'layer2' must make a Boundary, but made Linear"):
        boundary(lambda spec, context, head: nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("count", "told"), [(1, "heads on 0 cannot"), (3, "heads on 0, 1, 2 cannot"), (4, "heads on 0, 1, 2, ... cannot")]
)
def test_of_many_heads_without_a_label_the_first_three_are_told(count, told):
    boundaries = {str(i): boundary() for i in range(count)} | {"seeing": boundary(condition=one_hot(CLASSES))}

    with pytest.warns(UnconditionedWarning, match=told):
        warn_unconditioned(boundaries, "give a label", stacklevel=2)


def test_heads_that_see_the_label_and_boundaries_without_heads_are_told_nothing(recwarn):
    warn_unconditioned({"1": boundary(condition=one_hot(CLASSES)), "2": boundary("oracle")}, "", stacklevel=2)

    assert not recwarn.list


@pytest.mark.parametrize(
    ("shape", "at", "seen", "batch_dim"),
    [
        ((8, 6), 0, (8, 6), 0),
        ((5, 8, 6), 1, (8, 5, 6), 1),
        ((5, 6, 8), 2, (8, 5, 6), 2),
        ((6,), None, (1, 6), None),
        ((2, 3, 6), None, (1, 2, 3, 6), None),
        ((9, 2, 3, 6), None, (9, 2, 3, 6), 0),  # rows whose number differs from call to call
        ((), 0, (), 0),
    ],
)
def test_a_crossing_is_seen_with_its_batch_first(shape, at, seen, batch_dim):
    meta = {"batch_dim": at, "dtype": torch.float32, "device": torch.device("cpu")}
    crossing = SimpleNamespace(name="layer2", shape=shape)

    spec = Choices("auto", one_hot(CLASSES), "dni").spec(crossing, meta)

    assert (spec.shape, spec.batch_dim) == (seen, batch_dim)
    assert (spec.condition is None) is (at is None)


def test_a_name_wins_over_a_pattern_and_what_neither_names_has_the_default():
    def made(name):
        crossing = SimpleNamespace(name=name, shape=(8, 6))
        choices = Choices({"b*": "linear", "b2": "low-rank"}, None, {"c": "oracle"})
        return choices.make(
            crossing, {"dtype": torch.float32, "device": torch.device("cpu")}, Context(), Surroundings()
        )

    assert [made(name).head_name for name in ("b1", "b2", "a")] == ["linear", "low-rank 64", "mlp 8"]
    assert made("c").kind == "oracle"


def test_a_scheduled_boundary_can_be_read():
    found = warm_up(blend(dni(replay=2, refresh=8), 0.25), 100)

    assert (found.schedule.warm_up, found.boundary.schedule.blend) == (100, 0.25)
    inner = found.boundary.boundary
    assert (inner.schedule.refresh, inner.boundary.name, inner.boundary.options.replay) == (8, "dni", 2)
    assert [choice.name for choice in (silent(warm_up=3).boundary, oracle())] == ["silent", "oracle"]
