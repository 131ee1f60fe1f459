"""When groups of parameters are stepped."""

import torch
from torch import nn

from dnigraph.engine.updates.groups import Group, Tied


def tied(users=("first", "second", "third")):
    parameter = nn.Parameter(torch.zeros(1))
    group = Group("shared", [parameter], torch.optim.SGD([parameter], 1.0), None, None)
    return Tied(group, users), parameter


def learns(one, parameter, batch, user, gradient):
    parameter.grad = None if gradient is None else torch.tensor([gradient])
    one.through(batch, user)
    assert parameter.grad is None


def test_a_tied_group_waits_for_all_its_parts():
    one, parameter = tied()

    learns(one, parameter, 0, "third", 1.0)
    learns(one, parameter, 0, "first", 2.0)
    assert not one.gather(0)
    assert parameter.grad is None

    learns(one, parameter, 0, "second", None)  # it has learned nothing from this batch
    assert one.gather(0)
    assert parameter.grad.item() == 3.0
    assert not one.gather(0)


def test_gradients_are_added_up_from_the_last_part_to_the_first_whoever_learned_first():
    summands = {"first": 1e8, "second": -1e8, "third": 1.0}  # 1.0 is lost beside a large number

    for order in (("first", "second", "third"), ("third", "first", "second")):
        one, parameter = tied()
        for user in order:
            learns(one, parameter, 0, user, summands[user])
        one.gather(0)
        assert parameter.grad.item() == (torch.tensor(1.0) + -1e8 + 1e8).item() == 0.0


def test_a_late_group_is_stepped_so_many_batches_later_and_whole_at_the_end():
    one, parameter = tied(("first", "second"))
    one.late = 2
    for batch, gradient in ((0, 1.0), (1, 10.0)):
        learns(one, parameter, batch, "first", gradient)
        learns(one, parameter, batch, "second", gradient)

    assert not one.gather(1)
    assert one.gather(2)
    assert parameter.grad.item() == 2.0  # of the first batch alone
    parameter.grad = None
    assert not one.gather(2)
    assert one.gather(2, last=True)
    assert parameter.grad.item() == 20.0


def test_a_batch_is_not_mixed_with_a_later_one():
    one, parameter = tied(("first", "second"))

    learns(one, parameter, 0, "second", 1.0)
    learns(one, parameter, 1, "second", 10.0)
    learns(one, parameter, 0, "first", 2.0)
    assert one.gather(1)
    assert parameter.grad.item() == 3.0

    parameter.grad = None
    learns(one, parameter, 1, "first", 20.0)
    assert one.gather(1)
    assert parameter.grad.item() == 30.0


def test_what_is_forgotten_is_not_learned_but_a_part_that_still_waits_is():
    one, parameter = tied(("first", "second"))

    learns(one, parameter, 0, "second", 1.0)
    learns(one, parameter, 1, "second", 10.0)
    one.forget(waiting=[(0, "first")])
    learns(one, parameter, 0, "first", 2.0)
    assert one.gather(0)
    assert parameter.grad.item() == 3.0

    parameter.grad = None
    learns(one, parameter, 1, "first", 20.0)
    assert not one.gather(0)
