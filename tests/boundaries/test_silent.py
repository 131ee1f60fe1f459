"""The control that hands nothing down, and what a checkpoint keeps of it."""

import torch
from kit.boundaries import BATCH, WIDTH, boundary, producer_gets_truth

import dnigraph as dg


def test_the_truth_comes_in_the_warm_up_and_at_each_refresh_only():
    assert producer_gets_truth(boundary(dg.silent(warm_up=2, refresh=4)), 9) == [
        True, True, False, True, False, False, False, True, False,
    ]  # fmt: skip


def test_its_options_are_its_settings():
    expected = {"head": None, "warm_up": 2, "refresh": 4, "blend": 0.0}
    assert boundary(dg.silent(warm_up=2, refresh=4)).all_settings() == expected


def test_a_loaded_one_goes_on_with_the_count_of_its_visits():
    trained, loaded = boundary(dg.silent(warm_up=3)), boundary(dg.silent(warm_up=3))
    producer_gets_truth(trained, 2)

    loaded.load_state_dict(trained.state_dict())

    assert int(loaded.visits) == 2
    assert producer_gets_truth(loaded, 2) == producer_gets_truth(trained, 2) == [True, False]


def test_an_answer_that_comes_again_is_no_visit_and_gives_nothing():
    crossing, value = boundary(dg.silent(warm_up=3)), torch.randn(BATCH, WIDTH)

    visit = crossing.again(value, crossing.context.seen)

    assert visit.roots == (value,) and visit.now == (None,) and visit.settle(value) == (None,)
    assert int(crossing.visits) == 0
