"""What stands at a window's end, as the user says it: names, options, what goes around them; and their ranges."""

import pytest
import torch

import dnigraph as dg
from dnigraph.boundaries.schedule import Schedule
from dnigraph.recurrent.dni_in_time import InTime
from dnigraph.recurrent.options import Options, make_options

FITS = {
    "scale": (0, 100, None), "discount": (0, 1, None), "traces": (0, 1, None), "auxiliary": (0, 100),
    "decay": (0, 1), "cap": (1e-9, 1e9, None, "auto"), "gain": (1e-9, 1e9), "centre": (True, False),
    "listen_after": (0, 3),
}  # fmt: skip
MISFITS = {
    "scale": (-0.1, 100.1, "1", True), "discount": (-0.1, 1.1), "traces": (-0.1, 1.1),
    "auxiliary": (-0.1, 100.1, None), "decay": (-0.1, 1.1, None), "cap": (0, -1, 1e10, "none"),
    "gain": (0, 1e10, None, "auto"), "centre": (0, None), "listen_after": (-1, 0.0, False), "shuffled": (0, None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FITS.items() for value in values])
def test_a_value_at_the_end_of_its_range_fits(name, value):
    assert getattr(dg.dni_in_time(**{name: value}).options, name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MISFITS.items() for value in values])
def test_a_value_outside_of_its_range_is_named_alone(name, value):
    with pytest.raises(dg.RecurrentError) as caught:
        dg.dni_in_time(**{name: value})

    assert len(caught.value.misfits) == 1 and caught.value.misfits[0].startswith(f"{name}={value!r}")


def test_all_options_of_a_head_that_do_not_fit_are_named_at_once():
    with pytest.raises(dg.RecurrentError, match=r"help\(dg.dni_in_time\)") as caught:
        dg.dni_in_time(cap=-1, traces=2, shuffled=True)

    assert len(caught.value.misfits) == 3


@pytest.mark.parametrize("horizon", [0, 1.0, True, None])
def test_a_horizon_is_a_number_of_steps(horizon):
    with pytest.raises(dg.RecurrentError, match=f"horizon={horizon!r} "):
        make_options(horizon, "dni", "window")


@pytest.mark.parametrize(
    ("boundary", "found"),
    [
        ("dni", Options(3)),
        ("silent", Options(3, "silent")),
        ("bptt", Options(3, "bptt")),
        ("oracle", Options(3, "bptt")),
        (dg.oracle(), Options(3, "bptt")),
        ("shuffled", Options(3, "shuffled")),
        (dg.dni(), Options(3)),
        (dg.dni(warm_up=4, blend=0.5, decay=0.9), Options(3, "dni", InTime(decay=0.9), Schedule(4, 0, 0.5))),
        (dg.silent(warm_up=4, refresh=8), Options(3, "silent", InTime(), Schedule(4, 8))),
        (dg.dni_in_time(shuffled=True, cap=1.0), Options(3, "shuffled", InTime(cap=1.0))),
        (dg.dni_in_time(auxiliary=True), Options(3, "dni", InTime(auxiliary=0.003))),
        (dg.dni_in_time(auxiliary=False), Options(3)),
        (dg.warm_up(dg.blend("silent", 0.9), 5), Options(3, "silent", InTime(), Schedule(5, 0, 0.9))),
        (dg.blend(dg.blend("dni", 0.2), 0.9), Options(3, "dni", InTime(), Schedule(0, 0, 0.9))),
        (dg.blend(dg.dni_in_time(scale=0.3), 0.1), Options(3, "dni", InTime(scale=0.3), Schedule(0, 0, 0.1))),
        (dg.blend("dni", 0.0), Options(3)),
    ],
)
def test_a_boundary_is_read_through_all_that_goes_around_it(boundary, found):
    assert make_options(3, boundary, "window") == found


@pytest.mark.parametrize(
    ("boundary", "has_head", "stores", "shares"),
    [
        ("dni", True, False, [0, 0, 0, 0]),
        ("shuffled", True, False, [0, 0, 0, 0]),
        ("silent", False, False, [0, 0, 0, 0]),
        ("bptt", False, True, [1, 1, 1, 1]),
        (dg.warm_up("dni", 2), True, True, [1, 1, 0, 0]),
        (dg.refresh(dg.blend("silent", 0.5), 2), False, True, [0.5, 1, 0.5, 1]),
    ],
)
def test_who_has_a_head_and_which_windows_are_stored(boundary, has_head, stores, shares):
    options = make_options(3, boundary, "window")

    assert (options.has_head, options.stores) == (has_head, stores)
    assert [options.share(window) for window in (1, 2, 3, 4)] == shares


@pytest.mark.parametrize(
    ("boundary", "words"),
    [
        (dg.blend("shuffled", 0.5), "blend goes around every boundary but 'shuffled'"),
        (dg.warm_up(dg.dni_in_time(listen_after=1), 2), "warm_up and listen_after do not go together"),
        (dg.blend(dg.dni_in_time(discount=0.5), 0.5), "blend and discount do not go together"),
        (dg.refresh(dg.dni_in_time(auxiliary=True), 2), "refresh and auxiliary do not go together"),
        (dg.blend(dg.dni_in_time(traces=0.5), 0.5), "blend and traces do not go together: both are ways to BP(lambda)"),
        ("bpttt", "there are dni, silent, bptt, shuffled; nearest: bptt"),
        (dg.dni(replay=1), "replay=1: a head at a window's end"),
        (dg.local_loss(10), "boundary is a factory: at a window's end there are dni, silent, bptt, shuffled"),
        (None, "boundary is None: at a window's end"),
    ],
)
def test_what_does_not_go_together_is_named(boundary, words):
    with pytest.raises(dg.RecurrentError) as caught:
        make_options(3, boundary, "window")

    assert len(caught.value.misfits) == 1 and words in caught.value.misfits[0]


def test_all_misfits_of_a_run_are_named_at_once():
    boundary = dg.refresh(dg.blend(dg.dni_in_time(discount=0.5, traces=0.5), 0.5), 2)

    with pytest.raises(dg.RecurrentError) as caught:
        make_options(0, boundary, "never")

    assert len(caught.value.misfits) == 2 + 4


def test_on_a_crossing_it_says_where_it_belongs():
    model, x = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), torch.ones(3, 2)

    with pytest.raises(dg.BoundaryError, match=r"stands at a window's end, in dg.Recurrent: on a crossing the head"):
        dg.decouple(model, "0", (x,), boundary=dg.dni_in_time())


def test_behind_a_schedule_one_credit_serves_core_and_head():
    plain = make_options(3, dg.dni_in_time(scale=0.3), "window")
    behind = make_options(3, dg.blend(dg.dni_in_time(scale=0.3), 0.5), "window")

    assert plain.strengths(ending=True)[:2] == (0.3, 1.0) and behind.strengths(ending=True)[:2] == (0.3, 0.3)
