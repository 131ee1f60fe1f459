"""The inputs of a window as what the head sees."""

import pytest
import torch
from kit.streams import made

import dnigraph as dg
from dnigraph.recurrent.input_condition import make_condition
from dnigraph.recurrent.window import Window


def window(*inputs):
    return Window(inputs, None, None, None, None, None, 2, 3)


def test_numbers_are_seen_side_by_side_and_tokens_are_not():
    x = torch.arange(12.0).view(2, 3, 2), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3)
    seen = make_condition("input", 3, window(*x))

    rows = seen.rows(window(*x), made("custom").core)

    assert seen.width == rows.shape[1] == 9
    assert rows[1].tolist() == [0, 0, 0, 2, 3, 1, 8, 9, 1]  # one step is lacking in front


@pytest.mark.parametrize(
    ("choice", "inputs", "words"),
    [
        ("input", [torch.zeros(2, 3, dtype=torch.long)], "no floating-point tensor that a head could look at"),
        ("inputs", [torch.zeros(2, 3)], "there is no condition 'inputs'"),
    ],
)
def test_what_a_head_cannot_see_is_refused(choice, inputs, words):
    with pytest.raises(dg.RecurrentError, match=words):
        make_condition(choice, 3, window(*inputs))
