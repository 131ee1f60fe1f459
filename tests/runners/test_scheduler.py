"""The order in which agents run within a tick."""

import random

import pytest
from kit.networks import batches, chain, everything, same

import dnigraph as dg


@pytest.mark.parametrize("options", [{"synthetic": True}, {"delay": 1}, {"delay": 2, "boundary": "oracle"}])
def test_in_which_order_agents_fire_and_learn_within_a_tick_changes_no_number(options):
    one, other = (chain(p_update=0.5, seed=3, condition=dg.one_hot(3), log=True, **options)[0] for _ in range(2))
    chance = random.Random(0)

    for x, y in batches(25):
        one.tick({"f0.input": x}, y)
        if other.running is not None:
            chance.shuffle(other.topology.wiring().order)
        other.tick({"f0.input": x}, y)

    assert same(everything(one), everything(other))
    assert one.log.sorted() == other.log.sorted()
