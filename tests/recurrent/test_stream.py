"""Sequences of any length as windows."""

import pytest
import torch
from kit.streams import data, made

import dnigraph as dg
from dnigraph.recurrent.stream import make_stream


def windows(long, lengths=None, ends=True, horizon=3):
    x, y = data(long=long)
    core = made().core
    return list(make_stream(core, x, y, None, None, lengths, ends, None).windows(core, horizon))


@pytest.mark.parametrize(("long", "lengths"), [(7, [3, 3, 1]), (6, [3, 3]), (2, [2]), (3, [3]), (4, [3, 1])])
def test_windows_are_as_long_as_the_horizon_but_the_last(long, lengths):
    found = windows(long)

    assert [window.length for window in found] == lengths == [len(window.x) for window in found]
    assert [window.last for window in found] == [False] * (len(lengths) - 1) + [True]
    assert [window.ends for window in found[:-1]] == [None] * (len(lengths) - 1) and found[-1].all_end


def test_a_stream_that_goes_on_has_no_ends():
    assert [window.ends for window in windows(7, ends=False)] == [None] * 3


def test_each_sequence_ends_with_the_window_that_holds_its_last_step():
    found = windows(7, lengths=[3, 4, 0, 7])

    assert [None if w.ends is None else w.ends.tolist() for w in found] == [
        [True, False, True, False], [True, True, True, False], [True] * 4,
    ]  # fmt: skip
    assert torch.cat([w.mask for w in found]).sum(0).tolist() == [3, 4, 0, 7]


def test_without_padding_there_is_no_mask_and_no_end_before_the_last_window():
    found = windows(7, lengths=[7, 7, 7, 7])

    assert all(window.mask is None for window in found) and found[0].ends is None


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([0, 1, 7, 8], "lengths go from 0 to 8, but x has 7 steps"),
        ([-1, 1, 7, 7], "lengths go from -1 to 7, but x has 7 steps"),
        ([1, 2, 3], r"lengths is \[3\], but must be \[4\] whole numbers"),
        ([1.0, 2.0, 3.0, 4.0], r"lengths is \[4\], but must be \[4\] whole numbers"),
    ],
)
def test_a_length_outside_of_the_stream_is_refused(lengths, words):
    with pytest.raises(dg.RecurrentError, match=words):
        windows(7, lengths=lengths)


def test_sequences_of_several_lengths_must_end():
    with pytest.raises(dg.RecurrentError, match="sequences of several lengths end, but ends=False"):
        windows(7, lengths=[1, 2, 3, 4], ends=False)
