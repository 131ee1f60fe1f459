"""The user's step module: what is said of one that does not fit."""

import pytest
import torch
import torch.nn.functional as F
from kit.streams import adam
from torch import nn

import dnigraph as dg


@pytest.mark.parametrize("made_with", [True, False])
def test_an_order_other_than_the_modules_own_is_refused(made_with):
    step, options = nn.GRU(2, 2, batch_first=made_with), {"horizon": 2, "loss": F.mse_loss, "optimizer": adam}

    words = f"batch_first={not made_with}, but the module was made with batch_first={made_with}"
    with pytest.raises(dg.RecurrentError, match=words):
        dg.Recurrent(step, batch_first=not made_with, **options)
    assert dg.Recurrent(step, batch_first=made_with, **options).core.batch_first is made_with


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 7)

    def forward(self, x, state=None):
        raise ValueError(f"not {list(x.shape)}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "x was [2, 3, 4], read as [time, batch, ...], one step of which is [3, 4]; a module that takes whole"),
        ({"batch_first": True}, "x was [2, 3, 4], read as [batch, time, ...], one step of which is [2, 4]; a module"),
        ({"windowed": True}, "x was [2, 3, 4], read as [time, batch, ...]; its state was [3]"),
    ],
    ids=str,
)
def test_a_step_that_fails_is_told_with_what_it_was_given(options, words):
    rnn = dg.Recurrent(Fails(), horizon=4, loss=F.mse_loss, optimizer=adam, initial=torch.zeros, **options)

    with pytest.raises(dg.RecurrentError) as caught:
        rnn.step(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))

    assert "Fails failed in its first window: ValueError: not" in str(caught.value) and words in str(caught.value)
