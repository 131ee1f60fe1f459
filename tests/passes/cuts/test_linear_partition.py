"""Chains divided so that the largest stretch costs least, and then at the least weight."""

from itertools import accumulate, combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from dnigraph.passes.cuts.linear_partition import Chain


def stretches(chain, chosen):
    return [b - a for a, b in pairwise([0, *(chain.at[i + 1] for i in chosen), chain.at[-1]])]


@st.composite
def chains(draw):
    costs = draw(st.lists(st.integers(0, 30) | st.integers(100, 120), min_size=1, max_size=9))
    weights = draw(st.lists(st.integers(0, 9), min_size=len(costs) - 1, max_size=len(costs) - 1))
    *before, total = accumulate(costs)
    return Chain(before, total, weights), costs, weights, draw(st.integers(1, len(costs)))


@given(chains())
def test_no_choice_of_places_has_a_cheaper_largest_stretch(drawn):
    chain, _, _, count = drawn
    choices = combinations(range(len(chain.at) - 2), count - 1)
    least = min(max(stretches(chain, chosen)) for chosen in choices)

    chosen = chain.divide(count)

    assert len(chosen) == len(set(chosen)) == count - 1
    assert max(stretches(chain, chosen)) == chain.least(count) == least


@given(chains())
def test_of_the_choices_with_the_least_largest_stretch_it_has_the_least_weight(drawn):
    chain, costs, weights, count = drawn
    choices = list(combinations(range(len(weights)), count - 1))
    allowed = [c for c in choices if max(stretches(chain, c)) == chain.least(count)]

    chosen = chain.divide(count)

    if chain.least(count) > max(costs):  # else what stands alone lets the others be evened out further
        assert sum(weights[i] for i in chosen) == min(sum(weights[i] for i in c) for c in allowed)


def test_one_heavy_stretch_does_not_excuse_the_others():
    chain = Chain(before=[90, 91, 92, 93, 94, 95], total=96, weights=[5, 1, 1, 5, 1, 1])

    assert stretches(chain, chain.divide(3)) == [90, 3, 3]
