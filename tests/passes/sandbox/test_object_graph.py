"""The object graph of a model: what hangs on it is found once, however it hangs there."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from dnigraph.passes.graph.walk import walk
from dnigraph.passes.sandbox.object_graph import ObjectGraph


class Config:
    def __init__(self, **fields):
        vars(self).update(fields)


def test_tensors_arrays_and_generators_are_found_in_containers_and_objects():
    model = nn.Sequential(nn.Linear(2, 2))
    tensor, array, dice = torch.ones(1), np.ones(1), random.Random(1)
    model.config = Config(deep={"list": [(tensor, array)]}, dice=dice)

    graph = ObjectGraph.of(model)

    assert set(graph.tensors) == {id(tensor), *map(id, model.parameters())}
    assert set(graph.arrays) == {id(array)}
    assert set(graph.generators) == {id(dice)}
    assert id(model.config) in graph.objects and id(model.config.deep) in graph.containers


def test_submodules_are_followed_as_far_as_they_go_and_plain_objects_a_few_steps():
    model, deep = nn.Sequential(), nn.Sequential()
    model.append(deep)
    for _ in range(20):
        deep.append(nn.Sequential())
        deep = deep[0]
    deep.weight = nn.Parameter(torch.ones(1))
    model.config = far = Config()
    for _ in range(20):
        far.inner = Config()
        far = far.inner
    far.tensor = torch.ones(1)

    graph = ObjectGraph.of(model)

    assert set(graph.tensors) == {id(deep.weight)}


def test_objects_that_hold_each_other_are_noted_once():
    model = nn.Linear(2, 2)
    one, other = Config(), Config()
    one.other, other.other, model.one = other, one, one

    graph = ObjectGraph.of(model)

    assert [o for o in graph.objects.values() if isinstance(o, Config)] == [one, other]


def test_the_places_of_a_tensor_are_attributes_entries_and_tuples():
    model, tensor = nn.Linear(2, 2), torch.ones(1)
    model.plain, model.table, model.pair = tensor, {"a": [tensor]}, (1, tensor)

    places = list(ObjectGraph.of(model).places([tensor]))

    assert {key for _, key, _ in places} == {"plain", 0, "pair"}
    assert all(table[key] is value for table, key, value in places)


def test_a_walk_opens_a_value_again_where_it_can_look_deeper():
    shared = [["deep"], torch.ones(1)]
    root = [[[shared]], shared]

    reached = [value for _, _, value in walk(root, lambda v: v if isinstance(v, list) else None, depth=2)]

    assert any(value is shared[1] for value in reached)


def test_generators_that_are_not_the_models_own_or_have_no_state_are_not_noted():
    model = nn.Linear(2, 2)
    model.system, model.default, model.own = random.SystemRandom(), torch.default_generator, torch.Generator()

    assert list(ObjectGraph.of(model).generators.values()) == [model.own]


def nested(depth, tensor):
    config = Config(tensor=tensor)
    for _ in range(depth - 1):
        config = Config(inner=config)
    return config


@pytest.mark.parametrize(("depth", "is_found"), [(6, True), (7, False)])
def test_a_configuration_is_looked_into_six_deep(depth, is_found):
    model, tensor = nn.Module(), torch.ones(1)
    model.config = nested(depth, tensor)

    assert (id(tensor) in ObjectGraph.of(model).tensors) is is_found


@pytest.mark.parametrize(("depth", "is_found"), [(3, True), (4, False)])
def test_an_argument_is_looked_into_three_deep_and_what_only_it_holds_is_outside(depth, is_found):
    model, tensor = nn.Module(), torch.ones(1)
    model.config = Config()
    argument = nested(depth, tensor)

    graph = ObjectGraph.of(model, [argument, tensor, model.config])

    assert (id(tensor) in graph.tensors) is is_found
    assert id(argument) in graph.outside and id(argument) in graph.objects
    assert graph.outside.isdisjoint({id(model), id(model.config)})


def test_a_tensor_among_the_arguments_is_nobodys_and_without_arguments_nothing_is_outside():
    tensor = torch.ones(1)

    assert ObjectGraph.of(nn.Module(), [tensor]).tensors == {}
    assert ObjectGraph.of(nn.Module()).outside == set()


def test_below_some_values_everything_is_found_however_deep():
    tensor = torch.ones(1)

    assert list(ObjectGraph.below([nested(30, tensor), [[[{"a": (tensor,)}]]]]).tensors.values()) == [tensor]


def test_what_is_closed_is_not_looked_into():
    model, tensor = nn.Module(), torch.ones(1)

    def function():
        return tensor

    function.tensor = tensor
    kind = type("Kind", (), {"tensor": tensor})
    model.function, model.kind, model.library, model.hint = function, kind, torch, list[int]

    graph = ObjectGraph.of(model)

    assert graph.tensors == {} and set(graph.objects) == {id(model)}


def test_without_tensors_there_are_no_places_and_sets_have_none():
    model, tensor = nn.Module(), torch.ones(1)
    model.marks, model.deep = {tensor}, [((1, (tensor,)),)]

    assert list(ObjectGraph.of(model).places([])) == []
    assert [key for _, key, _ in ObjectGraph.of(model).places([tensor])] == [0]
