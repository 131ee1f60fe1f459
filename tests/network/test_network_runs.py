"""Runs of networks: repeated, resumed, on threads, now and then, unlocked; what they cost, and what the log says."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from kit.networks import adam, batches, chain, circle, everything, given, same, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


# ---- threads, seeds, checkpoints


@pytest.mark.parametrize("capacity", [1, 3])
def test_threads_give_bitwise_what_the_scheduler_gives(capacity):
    one, other = circle(log=True), circle(log=True)

    plain = one.run(given(40))
    threaded = other.run(given(40), threads=True, capacity=capacity)

    assert same(everything(one), everything(other))
    assert [r.losses for r in plain] == [r.losses for r in threaded]
    assert one.log.sorted() == other.log.sorted()


def test_a_failure_in_one_thread_ends_the_run_and_is_told():
    net = circle()
    net.run(given(2))
    net.agents["b"].module.forward = None

    with pytest.raises(TypeError):
        net.run(given(4), threads=True)


def test_agents_that_share_parameters_do_not_run_on_threads():
    shared = nn.Linear(6, 6)
    net = dg.Network().add("a", shared).add("b", nn.Sequential(shared), loss=F.cross_entropy)
    net.connect("a.output", "b.input")

    with pytest.raises(dg.NetworkError, match="a and b share a parameter"):
        net.run(batches(1), threads=True)


@pytest.mark.parametrize("at", [1, 7, 12])
def test_a_run_that_is_killed_and_resumed_repeats_it_exactly(at, tmp_path):
    whole, first = circle(), circle()
    data = list(given(20))
    whole.run(data)
    first.run(data[:at])
    first.save(tmp_path / "run.pt")

    torch.manual_seed(99)
    second = circle()
    second.load(tmp_path / "run.pt", data[0][0])
    second.run(data[at:])

    assert same(everything(whole), everything(second))
    assert second.ticks == 20


def test_a_checkpoint_of_another_wiring_is_refused_with_all_differences(tmp_path):
    net, _ = chain()
    net.run(batches(1))
    net.save(tmp_path / "run.pt")
    other, _ = chain(delay=1, boundary="local-loss", condition=dg.one_hot(3))

    with pytest.raises(dg.NetworkError) as caught:
        other.load(tmp_path / "run.pt", next(batches(1))[0])

    assert "links[0].delay is 1 here and 0 in the file" in str(caught.value)
    assert "links[1].boundary is 'local-loss' here and 'dni' in the file" in str(caught.value)


def test_firings_that_wait_for_true_gradients_are_not_saved_silently(tmp_path):
    net, _ = chain(boundary="oracle", delay=1)
    net.run(batches(1))

    with pytest.raises(dg.NetworkError, match="f0: 1 firings wait"):
        net.save(tmp_path / "run.pt")
    net.settle()
    net.save(tmp_path / "run.pt")


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = []
    for seed in (4, 4, 5):
        net = circle(seed=seed)
        net.run(given(15))
        runs.append(everything(net))

    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# ---- now and then, out of order, not at all


def test_an_agent_learns_as_often_as_its_p_update_says():
    net, _ = chain(p_update=0.3, log=True)

    net.run(batches(300))

    learned = [event.learns for event in net.log.of("fire", "f1")]
    assert 60 < sum(learned) < 120


def test_the_head_learns_only_when_its_receiver_does():
    net, _ = chain()
    net.agents["f1"].p_update = 0.0
    net.agents["f1"].loss = None
    (x, y), *_ = batches(1)
    net.agents["f1"].p_update = 1e-9

    net.tick(x, y)
    before = weights(net.boundaries["f0.output → f1.input"])
    net.tick(x, y)

    assert same(before, weights(net.boundaries["f0.output → f1.input"]))


def test_unlocked_parts_run_on_predictions_and_real_messages_train_the_predictors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = next(batches(1, size=64))
    dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(3), unlock="forward")
    net = dm.network(loss=F.cross_entropy, optimizer=adam)
    net.validate(x)
    seen = []
    reader = net.agents["part_1"].module
    reader.register_forward_pre_hook(lambda module, args, kwargs: seen.append(*kwargs.values()), with_kwargs=True)
    (predictor,) = net.running.predictors.values()

    net.tick(x, y)
    said = seen[0]
    for _ in range(200):
        net.tick(x, y)

    real = model[:2](x)
    assert not torch.equal(said, real)
    assert F.mse_loss(predictor(x), real) < 0.1 * real.var()
    assert F.cross_entropy(model(x), y) < 0.5
    with net.aside():
        net.tick(x, y)
    assert torch.equal(seen[-1], real), "in eval mode nothing is predicted"


def test_a_part_that_is_unlocked_needs_no_part_before_it():
    x, y = next(batches(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    dm = dg.decouple(model, "1", (x,), condition=dg.one_hot(3), unlock="forward")
    net = dm.network(loss=F.cross_entropy)
    net.tick(x, y)
    before = weights(model[2])
    net.pause("part_0")

    net.tick(x, y)

    assert not same(before, weights(model[2]))


def test_local_refuses_what_it_cannot_unlock():
    x, _ = next(batches(1))
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 3), nn.Tanh()), "0", (x,), unlock="forward")

    with pytest.raises(dg.DniGraphError, match=r"dm\.network"):
        dg.Local(dm, loss=F.cross_entropy, optimizer=adam)


def test_an_agent_drops_out_and_returns():
    net, layers = chain(log=True)
    net.run(batches(2))
    net.pause("f1")
    before = weights(layers[1])

    net.run(batches(3))
    assert same(before, weights(layers[1]))
    assert "paused" in str(net)
    net.resume("f1")
    net.run(batches(2))

    assert not same(before, weights(layers[1]))
    assert [event.tick for event in net.log.of("fire", "f1")] == [0, 1, 5, 6]


def test_what_runs_aside_leaves_no_trace():
    net = circle()
    net.run(given(5))
    before, ticks = [t.clone() for t in everything(net)], net.ticks

    with net.aside():
        found = net.run(given(4, start=9))

    assert len(found[3].losses) > 0
    assert same(before, everything(net)) and net.ticks == ticks
    other = circle()
    other.run(given(5))
    other.run(given(5, start=2))
    net.run(given(5, start=2))
    assert same(everything(net), everything(other))


# ---- cost and log


def calls_of_a_tick(agents):
    """How many Python calls one tick takes in a ring of so many agents, three links each."""
    net = dg.Network(optimizer=lambda p: torch.optim.SGD(p, 0.1))
    for i in range(agents):
        net.add(f"n{i}", Adder(), loss=F.mse_loss if i % 10 == 0 else None)
    for i in range(agents):
        for step, port in enumerate("abc", 1):
            net.connect(f"n{i}.output", f"n{(i + step) % agents}.{port}", delay=1, head="linear", initial=(3,))
    targets = {f"n{i}": torch.ones(2, 3) for i in range(0, agents, 10)}
    inputs = {f"n{i}.x": torch.ones(2, 3) for i in range(agents)}
    for _ in range(3):
        net.tick(inputs, targets)
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    net.tick(inputs, targets)
    sys.setprofile(None)
    return count


class Adder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, a, b, c):
        return self.weight * (x + a + b + c)


def test_a_tick_costs_as_much_per_link_in_a_network_of_a_thousand_agents():
    some, many = calls_of_a_tick(100), calls_of_a_tick(1000)

    assert 9.5 < many / some < 10.5


def test_the_log_knows_how_stale_messages_and_targets_are(tmp_path):
    net, _ = chain(delay=2, log=True)

    net.run(batches(6))

    reads = net.log.of("read", "f1")
    assert [event.stale for event in reads] == [None, None, 2, 2, 2, 2]
    assert [event.sent for event in reads] == [None, None, 0, 1, 2, 3]
    assert [event.stale for event in net.log.of("target", "f0")] == [2, 2, 2, 2]
    net.log.save(tmp_path / "log.json")
    net.log.trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "log.json").read_text())
    assert len(events) == len(net.log)
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(e["ph"] == "X" for e in trace) == 18
    starts, ends = ({e["id"]: e["ts"] for e in trace if e["ph"] == kind} for kind in "sf")
    assert starts.keys() == ends.keys() and all(starts[i] < ends[i] for i in starts)
