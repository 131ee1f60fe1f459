"""States of any nesting as rows, and back."""

import pytest
import torch

import dnigraph as dg
from dnigraph.recurrent.layout import find_layout


def state(batch, count=0):
    """A tensor with the batch in front, one with it in the middle, counts, a tensor without a batch, a number."""
    return {
        "h": torch.arange(batch * 2.0).view(batch, 2),
        "more": [torch.arange(3.0 * batch).view(3, batch, 1), torch.full((batch,), count), torch.ones(4)],
        "n": count,
    }


LAYOUT = find_layout(state(2), state(3))


def test_the_batch_axis_is_where_sizes_differ_and_only_numbers_with_a_batch_are_live():
    assert LAYOUT.axes == (0, 1, 0, None, None)
    assert LAYOUT.live == (0, 1) and LAYOUT.widths == (2, 3) and LAYOUT.width == 5
    assert LAYOUT.batch(LAYOUT.leaves(state(7))) == 7


def test_rows_hold_one_sequence_each_and_come_apart_again():
    live = LAYOUT.live_leaves(LAYOUT.leaves(state(4)))

    rows = LAYOUT.rows(live)

    assert rows[1].tolist() == [2, 3, 1, 5, 9]
    assert all(a.equal(b) for a, b in zip(LAYOUT.split(rows, live), live, strict=True))


def test_a_first_state_has_as_many_sequences_as_are_asked_for():
    first = LAYOUT.first(5)

    assert [list(leaf.shape) for leaf in first[:4]] == [[5, 2], [3, 5, 1], [5], [4]] and first[4] == 0
    assert first[0].tolist() == [[0.0, 1.0]] * 5


@pytest.mark.parametrize(("mask", "without_batch"), [([True, False], 8), ([True, True], 7), ([False, False], 8)])
def test_each_sequence_is_chosen_by_itself_and_what_has_no_batch_with_all_of_them(mask, without_batch):
    chosen, others = LAYOUT.leaves(state(2, 7)), LAYOUT.leaves(state(2, 8))

    found = LAYOUT.choose(torch.tensor(mask), chosen, others)

    assert found[2].tolist() == [7 if one else 8 for one in mask]
    assert found[4] == without_batch and found[3] is (chosen if all(mask) else others)[3]
    assert found[1].shape == (3, 2, 1)


@pytest.mark.parametrize(
    ("two", "three", "words"),
    [
        ((torch.ones(2),), [torch.ones(3)], "the state of two sequences is nested as"),
        ([torch.ones(4), 3], [torch.ones(4), 3], r"no tensor of the state grows with the batch: \['\[4\]', 'int'\]"),
    ],
)
def test_a_state_without_a_batch_is_refused(two, three, words):
    with pytest.raises(dg.RecurrentError, match=words):
        find_layout(two, three)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"h": torch.ones(2, 1, 2)}, r"leaf 0 of the state is \[2, 1, 2\]; for two sequences it is \[2, 2\]"),
        ({"h": torch.ones(2, 2, dtype=torch.long)}, "leaf 0 of the state is"),
        ({"h": 3}, "leaf 0 of the state is int"),
        ({"x": 3}, "the state is nested as"),
    ],
)
def test_a_state_of_another_form_is_named(change, words):
    with pytest.raises(dg.RecurrentError, match=words):
        LAYOUT.leaves(state(2) | change)


def test_a_state_that_grows_is_refused():
    before, grown = LAYOUT.leaves(state(2)), LAYOUT.leaves(state(2) | {"h": torch.ones(2, 3)})

    LAYOUT.refuse_growth(before, LAYOUT.leaves(state(2, 9)))
    words = r"leaf 0 of the state was \[2, 2\] before and is \[2, 3\] behind the window"
    with pytest.raises(dg.RecurrentError, match=words):
        LAYOUT.refuse_growth(before, grown)
