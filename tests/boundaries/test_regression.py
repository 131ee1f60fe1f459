"""The one regression of all heads: its numbers, and that the heads on cuts and at windows' ends share it."""

import math

import pytest
import torch
from kit.streams import BATCH, WIDE, made
from torch import nn

from dnigraph.boundaries import CrossingSpec
from dnigraph.boundaries.dni import Dni, Options
from dnigraph.boundaries.regression import Comparison, compare
from dnigraph.boundaries.scale import RunningScale
from dnigraph.heads.conditions import Context
from dnigraph.heads.layers import GAIN

STEPS, DECAY = 40, 0.99


class ByHand(nn.Module):
    """Running scale and error as `Dni` computed them by itself."""

    def __init__(self):
        super().__init__()
        self.mean_square = torch.zeros(())

    def error(self, estimate, target, batch, gain):
        size = torch.linalg.vector_norm(target)
        seen, known = float((size * (batch / target.numel() ** 0.5)).square()), float(self.mean_square)
        if 0 < seen < math.inf:
            self.mean_square.fill_(seen if known == 0 else known + (1 - DECAY) * (seen - known))
        known = float(self.mean_square)
        inverse = 1 / math.sqrt(known) if known > 0 else math.inf
        if math.isfinite(float(size)) and math.isfinite(inverse):
            return torch.add(estimate, target, alpha=-batch * inverse / gain)
        return torch.zeros_like(estimate)


def lessons(dtype):
    """Values and the targets that come for them: one of zeros, and one that is not finite, too."""
    torch.manual_seed(4)
    for step in range(STEPS):
        target = torch.randn(8, 6, dtype=dtype) * (0.1 + step % 5)
        yield torch.randn(8, 6, dtype=dtype), target * {0: 0.0, 7: math.inf}.get(step, 1.0)


def trained(learn, dtype):
    """A head after all lessons, with SGD. `learn` takes a head, a value and a target."""
    torch.manual_seed(1)
    head = nn.Linear(6, 6).to(dtype)
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    for value, target in lessons(dtype):
        optimizer.zero_grad()
        learn(head, value, target)
        optimizer.step()
    return [p.detach().clone() for p in head.parameters()]


def by_hand(gain, dtype):
    units = ByHand()

    def learn(head, value, target):
        estimate = head(value)
        error = units.error(estimate.detach(), target, len(value), gain)
        estimate.backward(error * (2 / error.numel()))

    return trained(learn, dtype)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_a_boundary_learns_bitwise_what_it_learned_when_it_had_a_regression_of_its_own(dtype):
    boundary = Dni(CrossingSpec("a", (8, 6), dtype, torch.device("cpu")), Context(), "auto", Options(guard=False))

    def learn(head, value, target):
        boundary.head, boundary._sample = Two(head), list(head.parameters())
        visit = boundary.visit(value.requires_grad_(), boundary.context.seen)
        visit.roots[1].backward(visit.settle(target)[1])

    found = trained(learn, dtype)

    assert all(map(torch.equal, found, by_hand(GAIN, dtype)))
    assert not all(map(torch.equal, found, by_hand(GAIN + 1, dtype)))


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_the_head_at_a_window_s_end_learns_the_same_to_the_last_bit(dtype):
    rnn = made(dtype=dtype)
    rnn.step(torch.zeros(3, BATCH, 3, dtype=dtype), torch.zeros(3, BATCH, 2, dtype=dtype))
    estimator = rnn._learner.estimator

    def learn(head, value, target):
        estimator.head = Two(head)
        estimator.learn(value, None, target, None)

    assert all(map(torch.equal, trained(learn, dtype), by_hand(5.0, dtype)))


class Two(nn.Module):
    """A head that looks at the value alone."""

    condition = None

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, value, label):
        return self.inner(value)


def test_rows_that_do_not_count_are_no_part_of_size_and_mean():
    rnn = made()
    rnn.step(torch.zeros(3, BATCH, 3, dtype=torch.double), torch.zeros(3, BATCH, 2, dtype=torch.double))
    estimator = rnn._learner.estimator
    estimate, target = torch.randn(2, BATCH, 2 * WIDE, dtype=torch.double)
    counted = torch.tensor([True, False, True, False])

    gradient, compared = estimator.regress(estimate, target, counted)

    assert gradient[~counted].eq(0).all() and gradient[counted].ne(0).all()
    root = target[counted].square().mean().sqrt() * BATCH
    error = estimate[counted] - target[counted] * BATCH / (root * 5)
    assert torch.allclose(gradient[counted], error * 2 / error.numel(), atol=1e-7)  # the scale is a float32
    assert compared().metrics["target_rms"] == pytest.approx(float(root))


def test_metrics_are_those_of_the_definition():
    estimate, target = torch.randn(2, 8, 6, dtype=torch.double)
    scale = RunningScale(DECAY)
    error, size, inverse = compare(scale, estimate, target, batch=8, gain=2.0)
    norms = torch.linalg.vector_norm(estimate), torch.linalg.vector_norm(error)

    found = Comparison(size, *norms, inverse, 8, 48, 2.0).metrics

    said = estimate * 2.0 * scale() / 8
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(said.flatten(), target.flatten(), 0)))
    assert found["error"] == pytest.approx(float((said - target).square().sum() / target.square().sum()))
    assert found["target_rms"] == pytest.approx(float(target.square().mean().sqrt()) * 8)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_target_that_says_nothing_teaches_nothing(value):
    scale = RunningScale(DECAY)
    compare(scale, torch.ones(2, 3), torch.ones(2, 3), 2, 1.0)

    error, _, _ = compare(scale, torch.ones(2, 3), torch.full((2, 3), value), 2, 1.0)

    assert error.eq(1.0 if value == 0 else 0.0).all() and float(scale()) == pytest.approx(2)


class OnDevice(RunningScale):
    """A scale that is a tensor, as on an accelerator, where reading a number would wait."""

    def update(self, mean_square):
        return torch.tensor(super().update(mean_square))


def test_on_an_accelerator_the_error_is_the_same_and_what_is_not_finite_is_left_out():
    estimate, target = torch.randn(2, 8, 6)
    error, _, _ = compare(RunningScale(DECAY), estimate, target, 8, 2.0)

    found, _, inverse = compare(OnDevice(DECAY), estimate, target, 8, 2.0)
    spoilt, _, _ = compare(OnDevice(DECAY), estimate, target.index_fill(0, torch.tensor([3]), math.nan), 8, 2.0)

    assert isinstance(inverse, torch.Tensor) and torch.allclose(found, error, atol=1e-6)
    assert spoilt.isfinite().all() and spoilt[3].eq(0).all()
