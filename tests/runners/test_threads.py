"""The runner with one thread for each agent."""

import threading

import pytest
import torch
import torch.nn.functional as F
from kit.networks import batches, chain, circle, everything, fork, given, same, sgd
from torch import nn

import dnigraph as dg
from dnigraph.runners.threads import BoundedQueue, Stopped

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


@pytest.mark.parametrize("capacity", [1, 3])
def test_threads_give_bitwise_what_the_scheduler_gives(capacity):
    one, other = circle(log=True), circle(log=True)

    plain = one.run(given(40))
    threaded = other.run(given(40), threads=True, capacity=capacity)

    assert same(everything(one), everything(other))
    assert [r.losses for r in plain] == [r.losses for r in threaded]
    assert one.log.sorted() == other.log.sorted()


def test_threads_agree_with_the_scheduler_when_agents_drop_out_between_runs():
    runs = []
    for threads in (False, True):
        net = circle(log=True)
        results = net.run(given(7), threads=threads)
        net.pause("b")
        results += net.run(given(5, start=1), threads=threads)
        net.resume("b")
        net.pause("a")
        results += net.run(given(6, start=2), threads=threads)
        net.resume("a")
        results += net.run(given(9, start=3), threads=threads)
        runs.append((everything(net), [(r.tick, r.fired, r.losses) for r in results], net.log.sorted()))

    assert same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_threads_compute_in_the_precision_of_the_thread_that_starts_them():
    runs = []
    for threads in (False, True):
        net = circle()
        with torch.autocast("cpu", torch.bfloat16):
            results = net.run(given(6), threads=threads)
        runs.append((everything(net), [r.outputs["a"]["guess"] for r in results]))

    assert runs[0][1][0].dtype == torch.bfloat16
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])


def test_a_failure_in_one_thread_ends_the_run_and_is_raised():
    net = circle()
    net.run(given(2))
    net.agents["b"].module.forward = None

    with pytest.raises(TypeError):
        net.run(given(4), threads=True)


def test_a_module_that_fails_on_threads_hands_its_error_to_the_caller_and_the_run_can_go_on():
    net, x, targets = fork()
    net.run([(x, targets)] * 2, threads=True)
    net.agents["b"].module.bad = True

    with pytest.raises(ValueError, match="not today"):
        net.run([(x, targets)] * 50, threads=True, capacity=1)

    net.agents["b"].module.bad = False
    assert 3 <= net.ticks <= 8  # so many had begun, in the fastest thread
    assert net.tick(x, targets).fired == ["a", "b", "c"]


def test_agents_that_share_parameters_do_not_run_on_threads():
    shared = nn.Linear(6, 6)
    net = dg.Network().add("a", shared).add("b", nn.Sequential(shared), loss=F.cross_entropy)
    net.connect("a.output", "b.input")

    with pytest.raises(dg.NetworkError, match="a and b share a parameter"):
        net.run(batches(1), threads=True)


@pytest.mark.parametrize("capacity", [0, -5, True, 1.5, "x"])
def test_queues_hold_at_least_one_packet(capacity):
    net, _ = chain()
    (x, y), *_ = batches(1)

    with pytest.raises(dg.NetworkError, match=r"capacity=.* a whole number from 1 on"):
        net.run([(x, y)], threads=True, capacity=capacity)


class Waits(nn.Module):
    """Tells that it has begun, and waits to be let go on."""

    def __init__(self, begun, go):
        super().__init__()
        self.layer, self.begun, self.go, self.calls = nn.Linear(6, 6), begun, go, 0

    def forward(self, x):
        self.calls += 1
        self.begun.set()
        self.go.wait(5)
        return self.layer(x)


def test_an_interrupted_run_stops_its_threads_and_waits_for_them(monkeypatch):
    def interrupted(thread, *args):
        if not interruptions and thread.is_alive():
            begun.wait(5)
            interruptions.append(thread)
            raise KeyboardInterrupt
        if interruptions and thread.is_alive():
            go.set()  # no sooner than somebody waits for it
        return join(thread, *args)

    begun, go, join, interruptions, ticks = threading.Event(), threading.Event(), threading.Thread.join, [], 20
    net = dg.Network(optimizer=sgd).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.add("a", Waits(begun, go)).connect("a.output", "b.input")
    given, targets = torch.ones(2, 6), torch.ones(2, 3)
    go.set()
    net.tick(given, targets)
    before, calls = set(threading.enumerate()), net.agents["a"].module.calls
    begun.clear(), go.clear()
    monkeypatch.setattr(threading.Thread, "join", interrupted)

    with pytest.raises(KeyboardInterrupt):
        net.run([(given, targets)] * ticks, threads=True, capacity=1)

    assert interruptions and not set(threading.enumerate()) - before
    assert net.agents["a"].module.calls - calls < ticks
    assert net.tick(given, targets).fired == ["a", "b"]


def test_a_full_queue_makes_its_sender_wait_until_the_run_stops():
    stop = threading.Event()
    channel = BoundedQueue(1, stop)
    channel.put(1)
    sender = threading.Thread(target=channel.put, args=(2,))
    sender.start()
    sender.join(0.15)

    assert sender.is_alive()
    assert (channel.get(), channel.get()) == (1, 2)
    sender.join()
    channel.put(3)
    assert channel.rest() == [3] and channel.rest() == []
    stop.set()
    for use in (channel.get, lambda: channel.put(4)):
        with pytest.raises(Stopped):
            use()
