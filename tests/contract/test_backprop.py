"""With oracles a runner is backprop."""

import copy

import pytest
import torch
from kit.models import ZOO, cut_up, labels, loss_of

import dnigraph as dg

ADAM = {"lr": 1e-2}


def batches(args, steps):
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        size = 4 + i % 2  # the batch size changes, too
        index = torch.randint(len(args[0]), (size,), generator=generator)
        yield tuple(a[index] for a in args), labels(size)


def trained_local(dm, args, steps):
    run = dg.Local(dm, loss=loss_of, optimizer=lambda p: torch.optim.Adam(p, **ADAM))
    torch.manual_seed(3)
    for x, y in batches(args, steps):
        run.step(*x, target=y)
    return dm.state_dict()


@pytest.mark.parametrize("name", ZOO)
def test_with_oracles_local_trains_like_backprop_of_the_plain_model(name):
    dm, args = cut_up(name, boundary="oracle", condition=None)
    plain = copy.deepcopy(dm.recouple())

    trained_local(dm, args, 10)
    optimizer = torch.optim.Adam(plain.parameters(), **ADAM)
    torch.manual_seed(3)
    for x, y in batches(args, 10):
        optimizer.zero_grad()
        loss_of(plain(*x), y).backward()
        optimizer.step()

    for (key, expected), found in zip(plain.named_parameters(), dm.recouple().parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
