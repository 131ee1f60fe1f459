"""How a window's loss is weighed: each entry the same, wherever windows are cut, whatever counts in them."""

import pytest
import torch
from kit.streams import LONG, Kept, data, made, mse, near, whole_gradients

STEP = torch.arange(3)


def learned(x, y, **options):
    """The gradient that one window gives a run whose horizon is 3; and the loss that it tells."""
    rnn = made(boundary="silent", optimizer=(kept := Kept()))
    out = rnn.step(x, y, **options)
    return kept.found[0], float(out.loss)


@pytest.mark.parametrize(
    ("length", "mask", "share"),
    [
        (3, None, 1),
        (2, None, 2 / 3),
        (1, None, 1 / 3),
        (3, STEP == 2, 1 / 3),
        (3, STEP != 1, 2 / 3),
        (2, STEP[:2] == 0, 1 / 3),
    ],
)
def test_a_window_counts_as_much_as_it_has_entries(length, mask, share):
    x, y = (t[:length] for t in data())

    found, told = learned(x, y, mask=mask)

    assert near(found, whole_gradients(made(), x, y, mask), share)
    output = made().core.read(made().core.module(x)[0]).detach()
    counted = slice(None) if mask is None else mask
    assert told == pytest.approx(float(mse(output[counted], y[counted])))  # the mean over what counts


@pytest.mark.parametrize("horizon", [2, 3, 5, LONG])
def test_all_windows_of_a_sequence_add_up_to_the_sum_over_its_entries(horizon):
    (x, y), mask = data(), torch.arange(LONG) % 4 != 1
    rnn = made(boundary="bptt", optimizer=(kept := Kept()), horizon=horizon)

    rnn.run(x, y, mask=mask)

    assert near(kept.found[0], whole_gradients(rnn, x, y, mask), int(mask.sum()) / horizon)
