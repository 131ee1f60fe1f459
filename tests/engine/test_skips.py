"""A value that is not finite costs the updates that would have used it, and is told once."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.networks import adam, everything
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")
X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, 3)
BAD = float("nan")


def root(output, target):
    """Its gradient is infinite where it is right."""
    return (output - target).abs().sqrt().mean()


def chain(loss=F.mse_loss, **options):
    torch.manual_seed(0)
    net = dg.Network(optimizer=adam).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 6))
    net.add("c", nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), loss=loss)
    net.connect("a.output", "b.input", **options)
    return net.connect("b.output", "c.input", **options)


LINKS = {
    "dni": {},
    "delay": {"delay": 1},
    "oracle": {"boundary": "oracle", "delay": 1},
    "warm-up": {"boundary": dg.dni(warm_up=3)},
    "replay": {"boundary": dg.dni(replay=2, refresh=3)},
    "blend": {"boundary": dg.dni(blend=0.5)},
    "mean": {"policy": "mean", "delay": 2},
    "predicted": {"synthetic": True},
}
HARM = {
    "target": lambda: (X, Y.index_fill(0, torch.tensor([1]), BAD)),
    "infinite target": lambda: (X, Y.index_fill(0, torch.tensor([1]), float("inf"))),
    "input": lambda: (X.index_fill(0, torch.tensor([2]), BAD), Y),
    "infinite input": lambda: (X.index_fill(1, torch.tensor([2]), float("inf")), Y),
}


def run(net, harm, ticks=12, threads=False):
    """Ticks of which the fifth has the harm; the warnings of each."""
    said = []
    for i in range(ticks):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net.run([HARM[harm]() if i == 4 else (X, Y)], threads=threads)
        said.append([w for w in caught if "not finite" in str(w.message)])
    return said


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("link", LINKS)
def test_one_bad_value_costs_updates_and_no_weights_and_is_told_once_in_its_tick(link, harm):
    net = chain(**LINKS[link])
    if link == "predicted":
        net.tick(X, Y)

    said = run(net, harm)

    assert all(t.isfinite().all() for t in everything(net) if t.is_floating_point())
    assert [len(some) for some in said].count(1) == 1 and sum(map(len, said)) == 1
    assert said.index([w for some in said for w in some]) in (4, 5, 6)  # when the agent that it reaches has fired
    assert sum(net.skipped.values()) >= 1
    before = [p.clone() for p in net.agents["a"].module.parameters()]
    net.run([(X, Y)] * 3)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.agents["a"].module.parameters(), strict=True))


def test_the_agent_with_the_bad_target_stays_where_it_is_and_its_answer_is_not_sent():
    net, twin = chain(), chain()
    for one in (net, twin):
        one.tick(X, Y)
    before = [p.clone() for p in net.agents["c"].module.parameters()]

    with pytest.warns(UserWarning, match=r"c, tick 1: its loss, nan, is not finite"):
        net.tick(*HARM["target"]())
    twin.tick(X)  # without a target there is no answer, either

    assert all(torch.equal(p, q) for p, q in zip(before, net.agents["c"].module.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(everything(net), everything(twin), strict=True))
    assert net.skipped == {"c": 1}


def test_a_finite_loss_whose_gradient_is_not_is_skipped_too():
    net = dg.Network(optimizer=adam).add("c", nn.Linear(6, 3), loss=root)
    right = net.agents["c"].module(X).detach()

    with pytest.warns(UserWarning, match="its gradient is not finite. This update"):
        net.tick(X, right)

    assert net.skipped == {"c": 1}
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_large_gradients_whose_sum_overflows_are_gradients(clip):
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 1e-38))
    net.add("c", nn.Linear(6, 3, bias=False), loss=lambda out, y: (out * y).sum(), clip=clip)
    before = net.agents["c"].module.weight.clone()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.tick(torch.ones(1, 6), torch.full((1, 3), 3e37))

    assert net.skipped == {}
    if clip is None:
        assert not torch.equal(before, net.agents["c"].module.weight)


@pytest.mark.parametrize("harm", ["target", "input"])
def test_on_threads_it_is_the_same(harm):
    net, twin = chain(delay=1), chain(delay=1)

    run(net, harm, threads=True)
    run(twin, harm)

    assert net.skipped == twin.skipped
    assert all(torch.equal(a, b) for a, b in zip(everything(net), everything(twin), strict=True))


def test_sparse_gradients_are_looked_at_too():
    net = dg.Network(optimizer=lambda p: torch.optim.SparseAdam(p))
    net.add("c", nn.EmbeddingBag(5, 3, sparse=True, mode="sum"), loss=F.mse_loss)
    words = torch.zeros(4, 2, dtype=torch.long)

    net.tick({"c.input": words}, Y)
    with pytest.warns(UserWarning, match="not finite"):
        net.tick({"c.input": words}, Y * BAD)

    assert net.skipped == {"c": 1}


class Harmful(dg.Boundary):
    """Its own weights have a gradient that is not finite; what it hands down is."""

    kind = "harmful"
    waits = False

    def __init__(self, spec, context):
        super().__init__(spec, context)
        self.weight = nn.Parameter(torch.zeros(1))

    def visit(self, value, seen):
        loss = self.weight.sqrt().sum()
        return dg.Visit((value, loss), (torch.ones_like(value), torch.ones_like(loss)), lambda t: (None, None))


def test_a_head_whose_gradient_is_not_finite_skips_its_update_and_is_named():
    net = dg.Network(optimizer=adam).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", boundary=lambda spec, context, head: Harmful(spec, context))

    with pytest.warns(UserWarning, match="the head of a.output → b.input, tick 0: its gradient is not finite"):
        net.tick(X, Y)

    (boundary,) = net.boundaries.values()
    assert net.skipped == {"the head of a.output → b.input": 1}
    assert boundary.weight.eq(0).all()
