"""The states of random number generators, and numbers at the ends of their range."""

import random

import numpy as np
import pytest
import torch
from kit.titles import titled

from dnigraph.passes.sandbox.rng import (
    ExtremeDraws,
    fingerprint,
    random_state,
    seed_all,
    set_random_state,
    set_state,
    state_of,
)  # fmt: skip


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002  # the one that models draw from


def test_all_generators_of_the_process_go_back_to_where_they_stood():
    state = random_state()
    first = draws()

    set_random_state(state)

    assert draws() == first


def test_one_seed_seeds_all():
    seed_all(3)
    first = draws()
    seed_all(3)

    assert draws() == first


@pytest.mark.parametrize(
    "generator", [random.Random(1), np.random.default_rng(1), np.random.RandomState(1), torch.Generator()], ids=titled
)
def test_a_generator_of_any_kind_goes_back_and_its_fingerprint_tells(generator):
    def draw():
        return torch.rand((), generator=generator) if isinstance(generator, torch.Generator) else generator.random()

    state = state_of(generator)
    before, first = fingerprint(state), draw()
    assert fingerprint(state_of(generator)) != before

    set_state(generator, state)

    assert fingerprint(state_of(generator)) == before
    assert draw() == first


@pytest.mark.parametrize("entries", range(2, 9))
def test_inner_draws_choose_an_entry_that_is_not_the_first(entries):
    state = random_state()
    try:
        ExtremeDraws.INNER.set()
        chosen = [random.choice(range(entries)) for _ in range(9)]
        chosen += [np.random.randint(entries), np.random.choice(entries)]  # noqa: NPY002  # the one that models draw from
        assert 0 not in chosen
    finally:
        set_random_state(state)


@pytest.mark.parametrize("extreme, lowest", [(ExtremeDraws.LOWEST, True), (ExtremeDraws.HIGHEST, False)])
def test_extreme_draws_of_python_and_numpy_are_at_one_end_of_their_range(extreme, lowest):
    state = random_state()
    try:
        extreme.set()
        numbers = [random.random(), np.random.rand()]  # noqa: NPY002  # the one that models draw from
        assert all(n < 1e-6 if lowest else n > 1 - 1e-6 for n in numbers)
        assert any(0.1 < random.random() < 0.9 for _ in range(1000))  # so that no loop waits for ever
    finally:
        set_random_state(state)


def test_a_fingerprint_without_a_state_is_of_python_and_numpy_and_not_of_torch():
    state, before = random_state(), fingerprint()
    try:
        torch.rand(1)
        assert fingerprint() == before
        random.random()
        after_python = fingerprint()
        assert after_python != before
        np.random.rand()  # noqa: NPY002  # the one that models draw from
        assert fingerprint() not in (before, after_python)
    finally:
        set_random_state(state)
    assert fingerprint() == before


@pytest.mark.parametrize("extreme", [ExtremeDraws.LOWEST, ExtremeDraws.HIGHEST])
def test_two_hundred_draws_are_extreme_and_the_next_is_not(extreme):
    state = random_state()
    try:
        extreme.set()
        numbers = [random.random() for _ in range(202)]  # each takes two of 400 words
    finally:
        set_random_state(state)

    at_the_end = [number < 1e-6 or number > 1 - 1e-6 for number in numbers]
    assert at_the_end == [True] * 200 + [False] * 2
