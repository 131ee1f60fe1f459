"""What a window's end gives the core, and the head's own target: shares, centring, ends."""

import pytest
import torch

from dnigraph.recurrent.credit import Credit, Truth, alive, guessed, mixed
from dnigraph.recurrent.dni_in_time import InTime
from dnigraph.recurrent.options import Options

ROWS = torch.tensor([[1.0, 10.0], [3.0, 20.0], [8.0, 0.0]])
ONE_ENDS, TWO_END = torch.tensor([True, False, False]), torch.tensor([True, False, True])


@pytest.mark.parametrize(
    ("rows", "ends", "centre", "expected"),
    [
        (ROWS, None, False, ROWS.tolist()),
        (ROWS, None, True, [[-3.0, 0.0], [-1.0, 10.0], [4.0, -10.0]]),
        (ROWS, ONE_ENDS, False, [[0.0, 0.0], [3.0, 20.0], [8.0, 0.0]]),
        (ROWS, ONE_ENDS, True, [[0.0, 0.0], [-2.5, 10.0], [2.5, -10.0]]),
        (ROWS, TWO_END, True, [[0.0, 0.0], [3.0, 20.0], [0.0, 0.0]]),  # one that goes on alone is its own mean
        (ROWS[:1], None, True, [[1.0, 10.0]]),
        (ROWS[:2], None, True, [[-1.0, -5.0], [1.0, 5.0]]),
    ],
)
def test_rows_of_sequences_that_end_are_zero_and_the_mean_is_that_of_the_others(rows, ends, centre, expected):
    assert alive(rows, ends, centre).tolist() == expected


def options(**more):
    return Options(3, head=InTime(centre=False, **more))


@pytest.mark.parametrize(
    ("more", "strengths", "core", "chain"),
    [
        ({}, (1.0, 1.0), 1.0, 1.0),
        ({}, (0.5, 0.5), 0.5, 0.5),
        ({}, (0.5, 0.25), 0.5, 0.25),
        ({}, (0.0, 0.5), None, 0.5),
        ({"traces": 0.5}, (0.5, 0.5), 0.5, 0.5),
    ],
)
def test_an_estimate_counts_as_strongly_as_is_said(more, strengths, core, chain):
    credit = guessed(options(**more), ROWS, None, strengths)

    assert credit.core is None if core is None else credit.core.equal(ROWS * core)
    assert credit.chain.equal(ROWS * chain)
    assert (credit.core is credit.chain) is (strengths[0] == strengths[1] and not more)


def test_traces_use_the_estimate_that_is_not_centred():
    credit = guessed(Options(3, head=InTime(traces=0.5)), ROWS, ONE_ENDS, (1.0, 1.0))

    assert credit.core.equal(alive(ROWS, ONE_ENDS, True)) and credit.chain.equal(alive(ROWS, ONE_ENDS, False))


@pytest.mark.parametrize(
    ("share", "estimate", "later", "scale", "expected"),
    [
        (1.0, None, ROWS, 1.0, ROWS),  # exact backprop
        (0.25, None, ROWS, 1.0, 0.25 * ROWS),  # the same, weakened
        (1.0, ROWS, 2 * ROWS, 1.0, 2 * ROWS),
        (0.25, ROWS, 2 * ROWS, 1.0, 0.5 * ROWS + 0.75 * ROWS),
        (0.25, ROWS, 2 * ROWS, 0.5, 0.5 * ROWS + 0.375 * ROWS),
        (0.25, ROWS, None, 1.0, 0.75 * ROWS),
        (0.0, ROWS, 2 * ROWS, 1.0, ROWS),
        (0.5, None, None, 1.0, None),
        (1.0, ROWS, None, 1.0, None),
    ],
)
def test_a_blend_is_a_share_of_the_true_gradient_and_the_rest_of_the_estimate(share, estimate, later, scale, expected):
    credit = mixed(options(), estimate, Truth(later, share), None, scale)

    assert credit.core is credit.chain
    assert credit.core is None if expected is None else torch.allclose(credit.core, expected)


def test_credit_of_some_sequences_is_none_for_the_others():
    credit = Credit(ROWS, ROWS).only(ONE_ENDS)

    assert credit.core is credit.chain and credit.core.tolist() == [[1.0, 10.0], [0.0, 0.0], [0.0, 0.0]]
    assert Credit(None, None).only(ONE_ENDS) == Credit(None, None)
    with pytest.raises(AssertionError, match="one credit for core and chain"):
        Credit(ROWS, ROWS.clone()).only(ONE_ENDS)
