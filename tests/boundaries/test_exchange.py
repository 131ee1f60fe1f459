"""Gradients at a crossing: what the producer gets for what its consumers send."""

import pytest
import torch
from kit.boundaries import BATCH, WIDTH, InOrder, boundary
from torch import nn

from dnigraph.boundaries import (
    sum_in_order,
)


@pytest.mark.parametrize("consumers", [1, 2, 4])
def test_an_oracle_equals_backprop_bitwise(consumers):
    def grads(between):
        torch.manual_seed(0)
        lower = nn.Linear(4, WIDTH)
        uppers = [nn.Linear(WIDTH, 2) for _ in range(consumers)]
        value = between(lower(torch.randn(BATCH, 4)))
        value = (value,) if consumers == 1 else value
        sum(u(v).square().sum() for u, v in zip(uppers, value, strict=True)).backward()
        return [p.grad for m in (lower, *uppers) for p in m.parameters()]

    def plain(h):
        aliases = tuple(h.view_as(h) for _ in range(consumers))
        return aliases[0] if consumers == 1 else InOrder.apply(h, consumers)

    crossing = boundary("oracle")
    for ours, theirs in zip(grads(lambda h: crossing(h, consumers)), grads(plain), strict=True):
        assert ours.equal(theirs)


def test_a_consumer_that_sends_nothing_counts_as_nothing():
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    first, _unused, third = boundary("oracle")(value * 1, 3)
    (first * 2 + third * 3).sum().backward()

    assert value.grad.eq(5).all()


def test_the_sum_runs_from_the_last_consumer_to_the_first():
    big, small = torch.tensor([1e8]), torch.tensor([1.0])

    assert sum_in_order([small, None, big, -big]).equal(small)  # (-big + big) + small
    assert sum_in_order([big, -big, small]).equal(torch.tensor([0.0]))  # (small - big) + big loses small
    assert sum_in_order([None, None]) is None
    assert sum_in_order([]) is None


def test_a_consumer_may_write_in_place():
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    boundary("oracle")(value * 1).relu_().sum().backward()

    assert value.grad.equal((value > 0).float())
