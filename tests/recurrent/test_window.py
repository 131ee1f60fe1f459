"""One window of a stream: which tensors fit."""

import pytest
import torch
from kit.streams import BATCH, IN, OUT, WIDE, data, made

import dnigraph as dg
from dnigraph.recurrent.learner_factory import layout_of
from dnigraph.recurrent.window import make_window, run_window, window_loss


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (3, "x is no tensor, but a window is [time, batch, ...]"),
        (torch.ones(4), "x is [4], but a window is [time, batch, ...]"),
        ((torch.ones(4, 4, 3), torch.ones(())), "x is [4, 4, 3], [], but a window is [time, batch, ...]"),
    ],
)
def test_an_input_without_the_axes_of_time_and_batch_is_refused(x, words):
    with pytest.raises(dg.RecurrentError) as caught:
        made("custom").step(x, torch.ones(4))

    assert words in str(caught.value) and "add the axes of time and batch" in str(caught.value)


@pytest.mark.parametrize("shape", [(0, BATCH), (3, 0)])
def test_an_empty_window_is_refused(shape):
    x, y = torch.ones(*shape, IN, dtype=torch.double), torch.ones(*shape, OUT, dtype=torch.double)

    with pytest.raises(dg.RecurrentError, match=f"x has {shape[0]} steps of {shape[1]} sequences: nothing to learn"):
        made().step(x, y)


def test_a_window_may_be_as_long_as_the_horizon_and_no_longer():
    (x, y), rnn = data(long=4), made()

    assert make_window(rnn.core, 4, x, y, None, None, None, None).length == 4
    with pytest.raises(dg.RecurrentError, match="the window has 4 steps, the horizon is 3"):
        make_window(rnn.core, 3, x, y, None, None, None, None)


@pytest.mark.parametrize(("rows", "share", "count"), [(None, 1.0, 12), (slice(0, 1), 1 / 3, 4), (slice(0, 0), 0.0, 0)])
def test_the_share_of_a_window_is_that_of_its_entries(rows, share, count):
    (x, y), mask = data(long=3), None
    if rows is not None:
        mask = torch.zeros(3, dtype=torch.bool)
        mask[rows] = True
    window = make_window(made().core, 3, x, y, mask, None, None, None)

    loss, got, entries = window_loss(lambda out, target: (out - target).square().mean(), y + 2, window, 3)

    assert (got, entries) == (pytest.approx(share), count)
    assert float(loss) == pytest.approx(4) if count else loss is None


def test_without_a_target_there_is_no_loss():
    (x, y), rnn = data(long=3), made()
    window = make_window(rnn.core, 3, x, None, None, None, None, None)

    assert window_loss(lambda out, target: out.mean(), y, window, 3) == (None, 0.0, 0)


def test_the_state_behind_the_first_step_is_told_where_it_is_asked_for():
    (x, y), core = data(long=3), made("gru").core
    window = make_window(core, 3, x, y, None, None, None, None)
    layout, leaves = layout_of(core, None, window), [torch.zeros(1, BATCH, WIDE, dtype=torch.double)]

    whole = run_window(core, layout, leaves, leaves, window, early=False)
    asked = run_window(core, layout, leaves, leaves, window, early=True)

    assert whole.early is None
    assert torch.allclose(asked.early[0], core.advance(x[:1], leaves[0])[1])
    assert torch.allclose(asked.last[0], whole.last[0]) and torch.allclose(asked.output, whole.output)


def test_a_reset_at_the_windows_start_is_none_inside_of_it():
    (x, y), core = data(long=3), made("gru").core
    anew = torch.ones(BATCH, dtype=torch.bool)
    window = make_window(core, 3, x, y, None, anew, None, None)
    held, first = ([torch.full((1, BATCH, WIDE), size, dtype=torch.double)] for size in (0.5, 0.0))

    found = run_window(core, layout_of(core, None, window), held, first, window, early=False)

    assert torch.allclose(found.last[0], core.advance(x, held[0])[1])  # it is the place that begins anew
