"""The options of the credit at a window's end: their ranges, to the last number."""

import pytest

import dnigraph as dg
from dnigraph.recurrent.options import Options, weight_of

FITS = {
    "horizon": (1, 7), "warm_up": (0, 3), "scale": (0, 100, None), "discount": (0, 1, None), "blend": (0, 1, None),
    "traces": (0, 1, None), "auxiliary": (0, 100, True), "decay": (0, 1), "cap": (1e-9, 1e9, None, "auto"),
    "gain": (1e-9, 1e9), "centre": (True, False), "update": ("window", "sequence"),
}  # fmt: skip
MISFITS = {
    "horizon": (0, 1.0, True, None), "warm_up": (-1, 0.0, False), "scale": (-0.1, 100.1, "1"), "discount": (-0.1, 1.1),
    "blend": (-0.1, 1.1), "traces": (-0.1, 1.1), "auxiliary": (-0.1, 100.1, None), "decay": (-0.1, 1.1, None),
    "cap": (0, -1, 1e10, "none"), "gain": (0, 1e10, None, "auto"), "centre": (0, None), "update": ("never", None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FITS.items() for value in values])
def test_a_value_at_the_end_of_its_range_fits(name, value):
    assert getattr(Options(**{"horizon": 3, name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MISFITS.items() for value in values])
def test_a_value_outside_of_its_range_is_named_alone(name, value):
    with pytest.raises(dg.RecurrentError) as caught:
        Options(**{"horizon": 3, name: value})

    assert len(caught.value.misfits) == 1 and caught.value.misfits[0].startswith(f"{name}={value!r}")


@pytest.mark.parametrize(
    ("boundary", "more", "has_head", "stores"),
    [("dni", {}, True, False), ("dni", {"blend": 0.0}, True, True), ("shuffled", {}, True, False),
     ("silent", {}, False, False), ("oracle", {}, False, True)],
)  # fmt: skip
def test_who_has_a_head_and_who_stores_windows(boundary, more, has_head, stores):
    options = Options(3, boundary, **more)

    assert (options.has_head, options.stores) == (has_head, stores)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"blend": 0.5, "warm_up": 1}, "blend and warm_up do not go together"),
        ({"blend": 0.5, "discount": 0.5}, "blend and discount do not go together"),
        ({"blend": 0.5, "auxiliary": True}, "auxiliary and blend do not go together"),
        ({"blend": 0.5, "traces": 0.5}, "blend and traces are two ways"),
        ({"boundary": "oracle", "traces": 0.5}, "traces goes with boundary='dni', not with 'oracle'"),
    ],
)
def test_options_that_exclude_each_other_are_named(given, words):
    with pytest.raises(dg.RecurrentError) as caught:
        Options(3, **given)

    assert len(caught.value.misfits) == 1 and words in caught.value.misfits[0]


def test_an_option_that_is_nothing_excludes_nothing():
    Options(3, blend=0.5, warm_up=0, discount=0, auxiliary=0)
    Options(3, boundary="oracle", auxiliary=False)


def test_the_auxiliary_weight_has_a_default():
    assert [weight_of(value) for value in (True, False, 0, 1, 0.5)] == [0.003, 0, 0, 1, 0.5]
