"""Boundaries go into a top graph, and out of it again."""

import dataclasses

import pytest
import torch
from kit.partition_programs import (
    SKIPPING_INPUTS,
    Skipping,
    parted,
)
from torch import nn

from dnigraph.passes.errors import PlanError
from dnigraph.passes.parts.boundary_nodes import boundary_key, insert_boundaries, strip_boundaries
from dnigraph.passes.parts.split import split


@pytest.fixture
def cut():
    return parted(Skipping(), ["relu", "middle"], *SKIPPING_INPUTS)


def snapshot(graph):
    return str(graph), [dict(node.meta) for node in graph.nodes]


def test_every_crossing_with_a_gradient_reaches_its_consumers_through_a_boundary(cut):
    found, parts = cut
    top = split(found.graph, parts).top

    made = insert_boundaries(top, parts)

    named = {node.name: node for node in made.nodes}
    assert named["dni_relu"].target == "dni.relu"
    assert named["dni_relu"].args == (named["relu"], 2)
    assert named["dni_relu_for_part_1"].args == (named["dni_relu"], 0)
    assert named["dni_relu_for_part_2"].args == (named["dni_relu"], 1)
    assert named["dni_middle"].args == (named["part_1"],)
    assert named["dni_relu_for_part_1"] in named["part_1"].args
    assert named["dni_relu_for_part_2"] in named["part_2"].args
    assert named["dni_middle"] in named["part_2"].args
    assert [n.target for n in made.nodes if str(n.target).startswith("dni.")] == ["dni.relu", "dni.middle"]


def test_outputs_of_the_model_are_read_before_the_boundary(cut):
    found, parts = cut

    made = insert_boundaries(split(found.graph, parts).top, parts)

    output = next(n for n in made.nodes if n.op == "output")
    assert [node.name for node in output.args[0]] == ["part_2", "relu", "scale"]


def test_values_without_gradient_cross_as_they_are(cut):
    found, parts = cut
    sizes = [crossing.node for crossing in parts.crossings if not crossing.gradient]

    made = insert_boundaries(split(found.graph, parts).top, parts)

    assert sizes
    assert not [n for n in made.nodes if n.name in {f"dni_{size}" for size in sizes}]


def test_boundaries_can_be_taken_out_again(cut):
    found, parts = cut
    top = split(found.graph, parts).top
    before = snapshot(top)
    made = insert_boundaries(top, parts)
    inserted = snapshot(made)

    again = strip_boundaries(made)

    assert snapshot(again) == before == snapshot(top)
    assert snapshot(made) == inserted != before


def test_keys_of_boundaries_are_unique_where_names_differ_by_a_dot():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4))
            self.a_0, self.c = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.c(self.a[0](self.a_0(x)))

    _, parts = parted(Model(), ["a_0", "a.0"], torch.ones(1, 4))

    assert [c.name for c in parts.crossings] == ["a_0", "a.0@2"]
    assert [boundary_key(c) for c in parts.crossings] == ["a_0", "a_0@2"]


def test_crossings_that_do_not_fit_are_all_listed(cut):
    found, parts = cut
    top = split(found.graph, parts).top
    first, second, *others = (c for c in parts.crossings if c.gradient)
    wrong = [dataclasses.replace(first, node="rely"), dataclasses.replace(second, consumers=("part_0", "part_9"))]

    with pytest.raises(PlanError) as raised:
        insert_boundaries(top, dataclasses.replace(parts, crossings=(*wrong, *others)))

    assert raised.value.misfits == (
        "crossing 'relu': no part gives 'rely'; nearest: relu",
        "crossing 'middle': part_0 does not read 'middle'",
        "crossing 'middle': part_9 does not read 'middle'",
    )


def test_boundaries_are_not_inserted_twice(cut):
    found, parts = cut
    made = insert_boundaries(split(found.graph, parts).top, parts)

    with pytest.raises(PlanError, match="'relu' is a boundary already"):
        insert_boundaries(made, parts)
