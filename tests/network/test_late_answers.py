"""Answers that come later than they could: who sent the message does not wait for them."""

import threading

import pytest
import torch
import torch.nn.functional as F
from kit.late import model, momentum, simulated
from kit.networks import Collect, adam, batches, everything, same, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def network(late, optimizer=momentum, **options):
    whole = model()
    dm = dg.decouple(whole, ["1", "3"], (torch.ones(8, 6),), **{"boundary": "oracle", **options})
    return dm.network(loss=F.cross_entropy, optimizer=optimizer, late=late), whole


@pytest.mark.parametrize("late", [0, 1, 2, 3])
def test_a_network_with_late_answers_equals_a_simulation_with_plain_lists_bitwise(late):
    ticks = list(batches(12))
    net, whole = network(late)
    net.run(ticks)

    assert same(weights(whole), weights(simulated(late, ticks)))
    if late:
        punctual, other = network(0)
        punctual.run(ticks)
        assert not same(weights(whole), weights(other))


def test_delayed_is_the_oracle_with_its_weights_stashed():
    ticks = list(batches(12))
    (net, whole), (other, plain) = network(2), network(2, boundary="delayed")
    net.run(ticks)
    other.run(ticks)

    assert same(weights(whole), weights(plain))


def unstashed(late, ticks):
    """By hand: a part learns from the activations of the tick and, for what it sends down, from its present weights."""
    whole = model()
    layers = [whole[0], whole[2], whole[4]]
    optimizers = [momentum(list(layer.parameters())) for layer in layers]
    kept, told = [[] for _ in layers], [[] for _ in layers]  # by layer and tick: input and tanh; (tick, gradient)
    for t, (x, y) in enumerate(ticks):
        value = x
        for i, layer in enumerate(layers):
            entered, value = value, layer(value).detach()
            value = torch.tanh(value) if i < 2 else value
            kept[i].append((entered, value))
        scores = value.requires_grad_()
        F.cross_entropy(scores, y).backward()
        for i in reversed(range(3)):
            heard = (t, scores.grad) if i == 2 else told[i][t - late] if t >= late else None
            answer = None
            if heard is not None:
                tick, gradient = heard
                entered, made = kept[i][tick]
                gradient = gradient * (1 - made * made) if i < 2 else gradient
                answer = tick, gradient @ layers[i].weight.detach().clone()
                layers[i].weight.grad, layers[i].bias.grad = gradient.T @ entered, gradient.sum(0)
                optimizers[i].step()
            if i:
                told[i - 1].append(answer)
    return whole


@pytest.mark.parametrize("late", [0, 1, 3])
def test_without_stashed_weights_a_part_learns_with_those_that_it_has(late):
    ticks = list(batches(12))
    net, whole = network(late, boundary=dg.delayed(stash=False))
    net.run(ticks)
    stashing, other = network(late)
    stashing.run(ticks)

    for found, expected in zip(weights(whole), weights(unstashed(late, ticks)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert same(weights(whole), weights(other)) == (late < 1)


@pytest.mark.parametrize("late", [0, 1, 3])
@pytest.mark.parametrize("boundary", ["oracle", "dni", dg.dni(warm_up=3, refresh=4), dg.blend("silent", 0.5)])
def test_on_threads_they_are_the_same_numbers_also_from_run_to_run(late, boundary):
    ticks = list(batches(12))
    one, other = (network(late, boundary=boundary, optimizer=adam)[0] for _ in range(2))

    one.run(ticks)
    for part in (ticks[:5], ticks[5:6], ticks[6:]):
        other.run(part, threads=True)

    assert same(everything(one), everything(other))


def test_a_sender_does_not_wait_for_the_answers_of_the_tick():
    ahead, released = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            assert ahead.wait(20), "the sender waits for this tick's answer"
            return self.layer(x)

    class Quick(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.ticks = nn.Linear(6, 6), 0

        def forward(self, x):
            self.ticks += 1
            if self.ticks == 3:
                ahead.set()
            return self.layer(x)

    quick = Quick()
    net = dg.Network(optimizer=adam).add("a", quick).add("b", Slow(), loss=F.cross_entropy)
    net.connect("a.output", "b.x", back=2, boundary="oracle")
    ahead.set()
    net.validate(torch.ones(8, 6))
    ahead.clear()
    quick.ticks = 0
    net.run(list(batches(4)), threads=True)
    assert quick.ticks == 4
    released.set()


def test_what_is_under_way_is_heard_when_the_stretch_ends_and_is_in_checkpoints(tmp_path):
    ticks = list(batches(10))
    one, other = (network(2, boundary="dni", optimizer=adam)[0] for _ in range(2))
    one.run(ticks[:5])
    one.save(tmp_path / "net.pt")  # heads wait for answers, no firing does
    other.load(tmp_path / "net.pt", ticks[0][0])
    one.run(ticks[5:])
    other.run(ticks[5:])
    assert same(everything(one), everything(other))

    true, whole = network(2)
    true.run(ticks[:3])
    before = weights(whole[0])
    with pytest.raises(dg.NetworkError, match="firings wait for their true gradients"):
        true.save(tmp_path / "net.pt")
    true.settle()
    assert not same(before, weights(whole[0]))
    true.save(tmp_path / "net.pt")


@pytest.mark.parametrize("late", [0, 1, 2, 5])
def test_at_the_end_every_gradient_has_come_and_none_twice(late):
    ticks = list(batches(4))
    net, whole = network(late, optimizer=Collect)
    for x, y in ticks[:-1]:
        net.tick(x, y)
    net.tick(*ticks[-1], ends=True)

    expected = [torch.zeros_like(p) for p in whole.parameters()]
    for x, y in ticks:
        gradients = torch.autograd.grad(F.cross_entropy(whole(x), y), list(whole.parameters()))
        expected = [total + gradient for total, gradient in zip(expected, gradients, strict=True)]
    states = {p: state for group in net.running.kept.groups.values() for p, state in group.optimizer.state.items()}
    for p, total in zip(whole.parameters(), expected, strict=True):
        torch.testing.assert_close(states[p]["sum"], total)
    assert net.open == 0


def test_what_is_aside_does_not_touch_what_is_under_way():
    ticks = list(batches(8))
    one, other = network(2), network(2)
    one[0].run(ticks)
    other[0].run(ticks[:4])
    with other[0].aside() as net:
        net.run(ticks[:3])
    other[0].run(ticks[4:])

    assert same(weights(one[1]), weights(other[1]))


@pytest.mark.parametrize("late", [-1, 1.5, True, None])
def test_ticks_that_are_none_are_refused(late):
    with pytest.raises(dg.NetworkError, match=r"late=.* \(a whole number of ticks from 0 on\)"):
        network(late)
    with pytest.raises(dg.NetworkError, match=r"back=.* \(a whole number from 0 on\)"):
        dg.Network().connect("a.output", "b.input", back=late)
