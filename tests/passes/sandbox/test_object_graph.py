"""The object graph of a model: what hangs on it is found once, however it hangs there."""

import random

import numpy as np
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
