"""When an agent fires."""

import pytest

from dnigraph.engine.description.clock import Clock


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("phase", [0, 1, 4])
def test_a_clock_says_when_it_fires_and_when_next(every, phase):
    clock, firing = Clock(every, phase), [phase + every * i for i in range(20)]

    assert [tick for tick in range(12) if clock.fires(tick)] == [tick for tick in firing if tick < 12]
    for tick in range(-1, 10):
        assert clock.after(tick) == next(later for later in firing if later > tick)


def test_a_clock_in_words():
    assert str(Clock(2, 0)) == "every 2" and str(Clock(3, 1)) == "every 3 from 1"
