"""What counts as a number among the arguments of users."""

from dnigraph.passes.errors import is_number, is_whole


def test_a_whole_number_is_no_truth_and_no_fraction():
    assert [is_whole(v, 1) for v in (0, 1, 2, True, 1.0, "1", None)] == [False, True, True, *[False] * 4]
    assert [is_whole(v) for v in (-1, 0, False)] == [False, True, False]


def test_a_number_is_no_truth_and_no_text():
    assert [is_number(v) for v in (0, -1.5, float("nan"), True, "1", None)] == [*[True] * 3, *[False] * 3]
