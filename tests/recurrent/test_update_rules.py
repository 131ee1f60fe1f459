"""What the user gives beside the step module: optimisers, clips, schedules."""

import pytest
import torch
from kit.streams import sgd
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.update_rules import Group, Rules, make_group, step_groups


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"windowed": "yes"}, "windowed='yes' (True or False)"),
        ({"windowed": None}, "windowed=None (True or False)"),
        ({"batch_first": 1}, "batch_first=1 (True or False)"),
        ({"readout": 3}, "readout=3: it is a module, from the step's outputs to those that the loss looks at"),
        ({"initial": 3}, "initial=3: it is a function of the number of sequences, or a module of that kind"),
        ({"optimizer": None}, "optimizer=None: give a function"),
    ],
    ids=str,
)
def test_an_argument_that_does_not_fit_is_the_only_one_named(options, words):
    step = nn.GRU(2, 2)

    with pytest.raises(dg.RecurrentError) as caught:
        dg.Recurrent(step, **{"horizon": 2, "loss": nn.MSELoss(), "optimizer": sgd} | options)

    assert len(caught.value.misfits) == 1 and words in caught.value.misfits[0]


def test_what_is_not_named_has_the_choice_for_the_rest():
    rules = Rules({"core": 1, "*": 2}, None, {"heads": 3.0})

    assert rules.of("core") == (1, None, None) and rules.of("heads") == (2, None, 3.0)


def test_a_group_without_an_optimiser_is_refused_and_one_without_weights_is_none():
    weight = nn.Parameter(torch.ones(2))
    rules = Rules({"core": sgd}, None, None)

    with pytest.raises(dg.RecurrentError, match=r"no optimiser is named for the heads.*\n.*'\*' for the rest"):
        make_group("heads", [weight], rules, list)
    assert make_group("heads", [weight.detach()], rules, list) is None


def group(name, gradient, clip=None):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor(gradient)
    return Group(name, [weight], torch.optim.SGD([weight], 1.0), None, clip)


@pytest.mark.parametrize(("clip", "moved"), [(None, [-3.0, -4.0]), (5.0, [-3.0, -4.0]), (2.5, [-1.5, -2.0])])
def test_a_clip_holds_the_norm_and_the_norm_of_before_is_told(clip, moved):
    core = group("core", [3.0, 4.0], clip)

    assert step_groups({"core": core}) == 5
    assert core.parameters[0].tolist() == pytest.approx(moved) and core.parameters[0].grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("groups", [["core", "heads"], ["heads"], ["core"]])
def test_a_gradient_that_is_not_finite_moves_nothing(bad, groups):
    made = {name: group(name, [bad if name == groups[0] else 1.0, 1.0]) for name in groups}

    norm = step_groups(made)

    assert norm != norm
    assert all(g.parameters[0].eq(0).all() and g.parameters[0].grad is None for g in made.values())


def test_a_head_that_is_clipped_is_looked_at_too():
    made = {"core": group("core", [1.0, 1.0]), "heads": group("heads", [float("nan"), 1.0], 1.0)}

    assert step_groups(made) != step_groups({})
    assert made["core"].parameters[0].eq(0).all()
