"""What the user gives beside the step module: optimisers, clips, schedules."""

import pytest
import torch
import torch.nn.functional as F
from kit.streams import sgd
from torch import nn

import dnigraph as dg
from dnigraph.recurrent.update_rules import Group, step_groups


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


def group(name, gradient, clip=None):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor(gradient)
    return Group(name, [weight], torch.optim.SGD([weight], 1.0), None, clip)


@pytest.mark.parametrize(("clip", "moved"), [(None, [-3.0, -4.0]), (5.0, [-3.0, -4.0]), (2.5, [-1.5, -2.0])])
def test_a_clip_holds_the_norm_and_the_norm_of_before_is_told(clip, moved):
    core = group("core", [3.0, 4.0], clip)

    assert step_groups({"core": core}, None) == 5
    assert core.parameters[0].tolist() == pytest.approx(moved) and core.parameters[0].grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("groups", [["core", "heads"], ["heads"], ["core"]])
def test_a_gradient_that_is_not_finite_moves_nothing(bad, groups):
    made = {name: group(name, [bad if name == groups[0] else 1.0, 1.0]) for name in groups}

    norm = step_groups(made, None)

    assert norm != norm
    assert all(g.parameters[0].eq(0).all() and g.parameters[0].grad is None for g in made.values())


def test_a_head_that_is_clipped_is_looked_at_too():
    made = {"core": group("core", [1.0, 1.0]), "heads": group("heads", [float("nan"), 1.0], 1.0)}

    assert step_groups(made, None) != step_groups({}, None)
    assert made["core"].parameters[0].eq(0).all()


def test_a_schedule_that_looks_at_the_loss_is_given_the_windows():
    torch.manual_seed(0)
    plateau = lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0)  # noqa: E731
    rnn = dg.Recurrent(
        nn.RNN(2, 3), horizon=2, loss=F.mse_loss, optimizer=lambda p: torch.optim.SGD(p, 0.1), scheduler=plateau
    )
    x, y = torch.randn(2, 4, 2), torch.full((2, 4, 3), 9.0)

    rnn.step(x, y)
    rnn.step(x, 2 * y)  # worse
    group = rnn._learner.groups["core"]

    assert group.optimizer.param_groups[0]["lr"] == 0.05
