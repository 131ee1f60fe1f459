"""Between two windows: which sequences begin, and in which state."""

import pytest
import torch

import dnigraph as dg
from dnigraph.recurrent.carried_state import Place, begin, behind, mended
from dnigraph.recurrent.layout import find_layout
from dnigraph.recurrent.window import Window

LAYOUT = find_layout(torch.zeros(2, 1), torch.zeros(3, 1))
FIRST, HELD, GIVEN = [torch.zeros(3, 1)], [torch.ones(3, 1)], [torch.full((3, 1), 2.0)]
ONE, OTHER = torch.tensor([True, False, False]), torch.tensor([False, True, False])


def window(reset=None, ends=None, batch=3):
    reset = None if reset is None else torch.stack((reset, torch.zeros_like(reset)))
    return Window(None, None, None, reset, ends, None, 2, batch)


@pytest.mark.parametrize(
    ("place", "given", "reset", "state", "fresh"),
    [
        (None, None, None, [0, 0, 0], [True] * 3),
        (None, GIVEN, None, [2, 2, 2], [True] * 3),
        (None, GIVEN, ONE, [0, 2, 2], [True] * 3),
        (Place(HELD, None, None), None, None, [1, 1, 1], None),
        (Place(HELD, None, None), None, ONE, [0, 1, 1], [True, False, False]),
        (Place(HELD, OTHER, None), None, None, [1, 0, 1], [False, True, False]),
        (Place(HELD, OTHER, None), None, ONE, [0, 0, 1], [True, True, False]),
    ],
)
def test_sequences_that_begin_do_so_in_the_first_state_and_the_others_go_on(place, given, reset, state, fresh):
    found = begin(LAYOUT, place, given, FIRST, window(reset))

    assert found.leaves[0].flatten().tolist() == state
    assert (None if found.fresh is None else found.fresh.tolist()) == fresh
    assert found.behind_ends() is (fresh == [True] * 3)


@pytest.mark.parametrize(
    ("place", "given", "words"),
    [
        (Place(HELD, None, None), None, "the window has 2 sequences, the stream has 3"),
        (None, GIVEN, "the window has 2 sequences, the state that was given has 3"),
    ],
)
def test_another_number_of_sequences_is_refused(place, given, words):
    with pytest.raises(dg.RecurrentError, match=words):
        begin(LAYOUT, place, given, FIRST, window(batch=2))


def test_where_all_sequences_end_nothing_is_carried_on():
    assert behind(window(ends=torch.ones(3, dtype=torch.bool)), HELD, "seen", None) is None

    place = behind(window(ends=ONE), [HELD[0].requires_grad_(), 3], "seen", None)

    assert place.fresh is ONE and place.seen == "seen" and place.leaves[1] == 3
    assert not place.leaves[0].requires_grad


def test_a_state_that_is_not_finite_begins_anew_and_only_that_one():
    lost = [torch.tensor([[1.0], [float("nan")], [2.0]])]
    seen = torch.tensor([float("inf"), 1.0])

    place = mended(LAYOUT, Place(lost, ONE, seen))

    assert place.fresh.tolist() == [True, True, False] and place.seen.tolist() == [0.0, 1.0]
    assert mended(LAYOUT, Place(lost, None, seen)).fresh.tolist() == [False, True, False]
    assert mended(LAYOUT, None) is None
