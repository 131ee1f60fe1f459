"""One firing, from what it read until it has learned."""

import weakref

import pytest
from kit.networks import batches, chain

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


@pytest.mark.parametrize("boundary", [dg.silent(refresh=50), dg.dni(warm_up=2), "oracle"])
def test_no_graph_outlives_its_firing(boundary):
    net, _ = chain(boundary=boundary)
    made = []
    net.agents["f0"].module.register_forward_hook(lambda module, args, output: made.append(weakref.ref(output)))

    for x, y in batches(4):
        net.tick(x, y)

    assert [output() for output in made] == [None] * len(made)
