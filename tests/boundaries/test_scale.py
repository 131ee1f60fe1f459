"""The running size of a crossing's gradient."""

import pytest
import torch
from kit.boundaries import BATCH, WIDTH, boundary, says, step

from dnigraph.boundaries import (
    dni,
)
from dnigraph.boundaries.scale import RunningScale


def test_a_zero_first_target_gives_no_nan_and_does_not_set_the_scale():
    crossing = boundary()
    value = torch.randn(BATCH, WIDTH)

    step(crossing, value, torch.zeros(BATCH, WIDTH))

    assert crossing.scale.mean_square == 0
    assert all(p.grad.isfinite().all() for p in crossing.parameters())
    step(crossing, value, torch.full((BATCH, WIDTH), 0.5))
    first = crossing.scale.mean_square.clone()
    assert torch.allclose(first, torch.tensor((0.5 * BATCH) ** 2))
    step(crossing, value, torch.zeros(BATCH, WIDTH))
    assert crossing.scale.mean_square == first


def test_the_scale_fades_by_its_decay():
    crossing = boundary(dni(decay=0.75))

    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), 1 / BATCH))
    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), 3 / BATCH))

    assert torch.allclose(crossing.scale.mean_square, torch.tensor(0.75 * 1 + 0.25 * 9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_target_that_is_not_finite_teaches_nothing(bad):
    crossing = boundary(dni(replay=2))
    value = torch.randn(BATCH, WIDTH)
    step(crossing, value)
    before = crossing.scale.mean_square.clone()
    crossing.zero_grad()
    target = torch.ones(BATCH, WIDTH)
    target[0, 0] = bad

    step(crossing, value, target)
    crossing.zero_grad()
    step(crossing, value)

    assert crossing.scale.mean_square.isfinite() and before.isfinite()
    assert all(p.grad.isfinite().all() for p in crossing.parameters())


def test_the_scale_stays_float32_when_the_model_is_cast():
    crossing = boundary().bfloat16()

    assert crossing.scale.mean_square.dtype == torch.float32
    assert crossing.head.output.weight.dtype == torch.bfloat16
    step(crossing, torch.randn(BATCH, WIDTH, dtype=torch.bfloat16))
    assert boundary().double().head.output.weight.dtype == torch.float64


def test_estimates_do_not_depend_on_how_large_the_batch_is():
    def first_estimate_after_learning(batch):
        torch.manual_seed(0)
        crossing = boundary(head=says(1.0), shape=(batch, WIDTH))
        sample = torch.arange(1.0, WIDTH + 1).expand(batch, WIDTH)
        step(crossing, sample, sample / batch)  # the gradient of a mean over the batch
        return step(crossing, sample, sample / batch) * batch, crossing.head.module.said.grad

    for small, large in zip(first_estimate_after_learning(4), first_estimate_after_learning(64), strict=True):
        assert torch.allclose(small[0], large[0], rtol=1e-5)


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on an accelerator."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize("targets", [[0.0, 4.0, 9.0], [float("inf"), 0.25, float("nan"), 0.0, 16.0], [0.0], []])
def test_on_an_accelerator_the_scale_is_the_same_without_a_look_at_it(targets):
    here, there = RunningScale(0.75), RunningScale(0.75)
    there.mean_square = there.mean_square.as_subclass(Elsewhere)

    for target in targets:
        ours, theirs = here.update(torch.tensor(target)), there.update(torch.tensor(target))

        assert isinstance(theirs, torch.Tensor) and float(theirs) == pytest.approx(ours)
        assert float(there.mean_square) == pytest.approx(float(here.mean_square))
    assert isinstance(there(), torch.Tensor) and float(there()) == pytest.approx(here())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("before", [0, 1])
def test_the_step_of_a_target_that_is_not_finite_moves_no_weight_of_the_head(bad, before):
    crossing, target = boundary(head=says()), torch.ones(BATCH, WIDTH)
    target[0, 0] = bad
    for _ in range(before):
        step(crossing, torch.randn(BATCH, WIDTH))
    crossing.zero_grad()

    step(crossing, torch.randn(BATCH, WIDTH), target)

    assert crossing.head.module.said.grad.eq(0).all()
