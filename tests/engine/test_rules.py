"""What the user chose for groups of parameters, by name."""

import pytest
import torch
from torch import nn

import dnigraph as dg
from dnigraph.engine.updates.rules import Rules


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def test_what_is_not_named_has_the_choice_for_the_rest():
    rules = Rules({"core": 1, "*": 2}, None, {"heads": 3.0})

    assert rules.of("core") == (1, None, None) and rules.of("heads") == (2, None, 3.0)
    assert rules.of("dni.a") == (2, None, 3.0)  # a boundary's, by the key for all of them


def test_a_group_without_an_optimiser_is_refused_and_one_without_weights_is_none():
    weight = nn.Parameter(torch.ones(2))
    rules = Rules({"core": sgd}, error=lambda words: dg.NetworkError([words]))

    with pytest.raises(dg.NetworkError, match=r"no optimiser is named for the heads; add an entry '\*' for the rest"):
        rules.group("heads", [weight], list, "the heads")
    assert rules.group("heads", [weight.detach()], list) is None


def test_a_group_holds_each_trained_parameter_once_with_its_schedule_and_clip():
    weight, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    schedule = lambda o: torch.optim.lr_scheduler.StepLR(o, 1)  # noqa: E731

    group = Rules(sgd, schedule, 2.0).group("core", [weight, frozen, weight], list)

    assert group.parameters == [weight] and group.clip == 2.0
    assert group.scheduler.optimizer is group.optimizer
