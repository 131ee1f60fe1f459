"""Earlier batches from which a head learns once more."""

import pytest
import torch
from kit.boundaries import BATCH, WIDTH, boundary, says, step

from dnigraph.boundaries import (
    dni,
)
from dnigraph.boundaries.replay import Replay
from dnigraph.heads.layers import GAIN


def test_replay_learns_from_the_last_batches_too():
    crossing = boundary(dni(replay=2, decay=0.0), says(0.0))
    expected = []
    for scale in (1.0, 2.0, 3.0, 4.0):
        crossing.zero_grad()
        sign = torch.ones(BATCH, WIDTH).copysign(torch.randn(BATCH, WIDTH))
        expected.append(-2 * sign.mean(0) / WIDTH / GAIN)  # of the mean square error at 0, to targets of size 1 / GAIN

        step(crossing, torch.randn(BATCH, WIDTH), sign * scale)

        assert torch.allclose(crossing.head.module.said.grad, sum(expected[-3:]), atol=1e-6)
    assert len(crossing.replay) == 2


def test_replay_remembers_values_as_they_were():
    crossing = boundary(dni(replay=1))
    value = torch.ones(BATCH, WIDTH, requires_grad=True) * 1
    visit = crossing.visit(value, crossing.context.seen)

    visit.settle(torch.randn(BATCH, WIDTH))
    value.detach().zero_()

    assert crossing.replay.value_0.eq(1).all()


def test_replay_forgets_batches_of_another_shape():
    crossing = boundary(dni(replay=3), "tokens", (BATCH, 5, WIDTH))

    step(crossing, torch.randn(BATCH, 5, WIDTH))
    step(crossing, torch.randn(BATCH, 5, WIDTH))
    assert len(crossing.replay) == 2
    step(crossing, torch.randn(BATCH, 7, WIDTH))

    assert len(crossing.replay) == 1
    step(crossing, torch.randn(BATCH // 2, 7, WIDTH))
    assert len(crossing.replay) == 2


@pytest.mark.parametrize("name", ["replay.value_1", "replay.label_0", "replay.anything", "replay.value_x"])
def test_a_file_with_other_batches_than_replay_keeps_is_refused(name):
    crossing, other = boundary(dni(replay=1)), boundary(dni(replay=1))
    step(crossing, torch.randn(BATCH, WIDTH))
    state = crossing.state_dict() | {name: torch.ones(2)}

    if name == "replay.label_0":  # a batch may have a label
        other.load_state_dict(state)
        assert other.replay.label_0.eq(1).all()
    else:
        with pytest.raises(RuntimeError, match=f"Unexpected key.*{name}"):
            other.load_state_dict(state)


@pytest.mark.parametrize("size", [(2**28, 2), (4, 2**27)], ids=str)
def test_a_batch_that_repeats_a_number_until_memory_is_full_is_refused(size):
    crossing, other = boundary(dni(replay=1)), boundary(dni(replay=1))
    step(crossing, torch.randn(BATCH, WIDTH))
    state = crossing.state_dict() | {"replay.value_0": torch.zeros(1).expand(size)}

    with pytest.raises(RuntimeError, match=r"replay.value_0 repeats a few numbers until there are \d{10} bytes"):
        other.load_state_dict(state)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_last_batches_are_kept_oldest_first_and_one_that_is_not_finite_is_not(size):
    replay, value = Replay(size), torch.zeros(2, 1)

    for number in (1.0, 2.0, float("nan"), 3.0, 4.0, float("inf")):
        replay.remember(value, None, torch.full((2, 1), number))

    assert [float(replay._buffers[f"target_{i}"][0]) for i in range(len(replay))] == [2.0, 3.0, 4.0][-size:]
    assert replay.entries == [f"{part}_{i}" for i in range(size) for part in ("value", "label", "target")]


def test_before_the_first_batch_there_is_nothing_to_learn_from():
    assert Replay(2).loss(lambda value, label: value) is None
