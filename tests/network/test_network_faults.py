"""Networks in trouble: what fails in the middle, what once came out wrong, threads and the log."""

import copy
import json
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from kit.networks import Cell, Late, batches, chain, circle, everything, fork, given, same, sgd, squared, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_a_tick_without_an_input_fails_before_anybody_fires():
    net, x, targets = fork()
    net.add("d", Cell(), loss=squared)
    inputs = {"a.input": x, "d.x": torch.ones(2, 3), "d.heard": torch.ones(2, 4)}
    net.tick(inputs, targets)
    before, events = everything(net), len(net.log)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.input": x}, targets)

    assert "d.x is needed in tick 1" in str(caught.value) and "d.heard is needed" in str(caught.value)
    assert same(before, everything(net)) and len(net.log) == events and net.ticks == 1


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("boundary", ["dni", "oracle"])
def test_after_a_tick_that_failed_nothing_is_read_late_and_nobody_waits_for_ever(boundary, threads):
    net, x, targets = fork(boundary=boundary)
    net.tick(x, targets)
    net.agents["b"].module.bad = True
    with pytest.raises(ValueError, match="not today") as caught:
        net.run([(x, targets)], threads=threads)
    net.agents["b"].module.bad = False

    assert "in agent 'b', tick 1; it read x [2, 6] from a.output" in caught.value.__notes__
    net.run([(x, targets)] * 3, threads=threads)

    reads = [(e.tick, e.agent, e.stale) for e in net.log.of("read") if e.tick > 1]
    assert sorted(reads) == [(tick, agent, 0) for tick in (2, 3, 4) for agent in "bc"]
    net.settle()
    assert not any(actor.waiting or any(box.sent for box in actor.outboxes) for actor in net.running.actors.values())


def test_a_module_that_fails_on_threads_hands_its_error_to_the_caller_and_the_run_can_go_on():
    net, x, targets = fork()
    net.run([(x, targets)] * 2, threads=True)
    net.agents["b"].module.bad = True

    with pytest.raises(ValueError, match="not today"):
        net.run([(x, targets)] * 50, threads=True, capacity=1)

    net.agents["b"].module.bad = False
    assert 3 <= net.ticks <= 8  # so many had begun, in the fastest thread
    assert net.tick(x, targets).fired == ["a", "b", "c"]


def test_nothing_comes_back_for_what_nobody_will_read():
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.connect("a.output", "b.input", delay=1)
    (x, y), *_ = batches(1)
    for _ in range(5):
        net.tick({"a.input": x}, {"b": y})
    going = copy.deepcopy(net)
    before = net.agents["a"].module.weight.clone()

    net.tick({"a.input": x}, {"b": y}, ends=True)
    going.tick({"a.input": x}, {"b": y})

    assert torch.equal(net.agents["a"].module.weight, before)
    assert not torch.equal(going.agents["a"].module.weight, before)


def test_what_ran_aside_before_the_first_tick_leaves_nothing():
    def net():
        torch.manual_seed(0)
        found = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
        found.connect("x", ["a.input", "b.x"])
        found.connect("a.output", "b.heard", delay=1)
        return found

    one, other = net(), net()
    with one.aside():
        one.tick(torch.ones(5, 6))
        one.tick(torch.ones(5, 6))

    for _ in range(3):
        found, wanted = (n.tick(torch.ones(2, 6), torch.ones(2, 3)).losses["b"] for n in (one, other))
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "initial", [lambda batch: torch.ones(batch, 6), torch.ones(1, 6), (6,)], ids=["function", "one sample", "sizes"]
)
def test_what_is_read_first_fits_every_batch(initial):
    net = dg.Network(optimizer=sgd).add("a", Late(6), loss=lambda made, y: made.square().mean())
    net.connect("a.output", "a.heard", delay=1, initial=initial)

    for size in (4, 2, 4):
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size))
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size), ends=True)


@pytest.mark.parametrize("threads", [False, True])
def test_an_episode_whose_last_tick_fails_is_over_too(threads):
    net, x, targets = fork()
    net.run([(x, targets)] * 3)
    net.agents["b"].module.bad = True

    with pytest.raises(ValueError, match="not today"):
        net.run([(x, targets, None, True)], threads=threads)

    net.agents["b"].module.bad = False
    assert net.ticks == 0
    net.tick(torch.ones(5, 6), {"b": torch.zeros(5, 6), "c": torch.zeros(5, 6)})


def test_a_boundary_with_a_gradient_of_its_own_gives_it_also_where_nobody_reads():
    class Own(dg.Boundary):
        kind = "own"
        waits = False

        def visit(self, value):
            return dg.boundaries.Visit((value,), (torch.ones_like(value),), lambda target: (None,))

    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=1, boundary=lambda spec, context, head: Own(spec, context))
    before = net.agents["a"].module.weight.clone()

    net.tick(torch.ones(2, 6), torch.ones(2, 3), ends=True)

    assert not torch.equal(before, net.agents["a"].module.weight)


@pytest.mark.parametrize("boundary", [dg.silent(refresh=50), dg.dni(warm_up=2), "oracle"])
def test_no_graph_outlives_its_firing(boundary):
    net, _ = chain(boundary=boundary)
    made = []
    net.agents["f0"].module.register_forward_hook(lambda module, args, output: made.append(weakref.ref(output)))

    for x, y in batches(4):
        net.tick(x, y)

    assert [output() for output in made] == [None] * len(made)


def test_dicts_of_optimisers_mean_what_they_mean_to_a_runner():
    def both(optimizer):
        made = []
        for _ in range(2):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
            made.append(dg.decouple(model, "1", (torch.ones(2, 6),)))
        return made[0], made[1].network(loss=F.cross_entropy, optimizer=optimizer), made[1]

    slow = lambda p: torch.optim.SGD(p, 1e-3)  # noqa: E731
    dm, net, other = both({"*": sgd, "heads": slow})
    local = dg.Local(dm, loss=F.cross_entropy, optimizer={"*": sgd, "heads": slow})
    for x, y in batches(3):
        local.step(x, target=y)
        net.tick(x, y)
    assert all(torch.equal(a, b) for a, b in zip(dm.state_dict().values(), other.state_dict().values(), strict=True)
               if isinstance(a, torch.Tensor))  # fmt: skip

    for wrong in ({"part_0": sgd}, {"heads": sgd}):
        with pytest.raises(dg.NetworkError, match=r"no optimiser is named for part_1"):
            both(wrong)


def test_the_mean_is_that_of_all_messages_however_slow_the_reader():
    net = dg.Network().add("a", nn.Identity()).add("b", nn.Linear(6, 3), every=100, loss=F.mse_loss)
    net.connect("a.output", "b.input", policy="mean")
    seen, sent = [], torch.randn(100, 2, 6)
    net.agents["b"].module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input"]), with_kwargs=True)

    net.run([(x, torch.zeros(2, 3)) for x in sent])

    torch.testing.assert_close(seen[-1].detach(), sent.mean(0))


def test_a_network_that_begins_in_eval_mode_predicts_nothing():
    net = dg.Network().add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", synthetic=True)
    x = torch.ones(2, 6)

    found = net.eval().tick(x).outputs["b"]["output"]

    a, b = (net.agents[name].module for name in "ab")
    assert torch.equal(found, b(a(x)))


def test_what_is_read_first_has_the_precision_of_the_sender():
    net = dg.Network().add("a", nn.Linear(6, 5).double()).add("b", nn.Linear(5, 6).double(), loss=F.mse_loss)
    net.connect("a.output", "b.input")
    net.connect("b.output", "a.input", initial=(6,))

    assert net.tick({}, torch.ones(4, 6).double()).outputs["b"]["output"].shape == (4, 6)


def test_aside_leaves_what_the_user_froze_in_eval_mode():
    net, layers = chain()
    net.run(batches(1))
    layers[0][1].eval()

    with net.aside():
        net.run(batches(1))

    assert [layer.training for layer in layers[0]] == [True, False]


def test_the_label_of_one_agent_is_not_anothers_because_it_came_alone():
    net = dg.Network(condition=dg.one_hot(3))
    net.add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.cross_entropy)
    net.add("c", nn.Linear(6, 3), every=2, loss=F.cross_entropy)
    net.connect("a.output", ["b.input", "c.input"])

    with pytest.raises(dg.NetworkError, match="there is none for a"):
        net.tick(torch.ones(2, 6), {"b": torch.tensor([0, 1])})


def test_modules_that_take_any_name_and_compiled_ones_are_given_their_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, **values):
            return self.layer(sum(values.values()))

    net = dg.Network().add("s", Sum(), loss=F.mse_loss)
    net.add("c", torch.compile(nn.Linear(6, 3), backend="eager"), loss=F.mse_loss)
    x = torch.ones(2, 6)

    net.tick({"s.one": x, "s.two": x, "c.input": x}, {"s": torch.ones(2, 3)})
    out = net.eval().tick({"s.one": x, "s.two": x, "c.input": x}).outputs

    assert torch.equal(out["s"]["output"], net.agents["s"].module.layer(2 * x))
    assert net.inputs == ["c.input"]


class Writing(nn.Module):
    """Writes to what it is given, as many residual nets do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.add_(1).relu_())


@pytest.mark.parametrize("p_update", [1.0, 1e-9])
def test_who_writes_to_an_input_spoils_it_for_nobody(p_update):
    torch.manual_seed(0)
    a, b, c = nn.Linear(6, 6), Writing(), nn.Linear(6, 3)
    plain = copy.deepcopy(nn.ModuleList([a, b, c]))
    net = dg.Network(optimizer=sgd).add("a", a).add("b", b, loss=F.mse_loss, p_update=p_update)
    net.add("c", c, loss=F.mse_loss, p_update=p_update)
    net.connect("a.output", ["b.x", "c.input"], boundary="oracle")
    x = torch.randn(2, 6)
    kept, y = x.clone(), torch.ones(2, 3)

    out = net.tick(x, {"b": y, "c": y}).outputs

    said = plain[0](x)
    assert torch.equal(out["b"]["output"], plain[1](said.clone()))
    assert torch.equal(out["c"]["output"], plain[2](said))
    assert torch.equal(x, kept)


def test_a_message_that_lies_in_the_senders_memory_is_sent_as_it_was():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(2, 6))

        def forward(self, x):
            self.count += 1
            return {"count": self.count, "view": self.count[:, :3]}

    seen = []
    net = dg.Network().add("a", Counter()).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.count", "b.input", delay=2)
    net.agents["b"].module.register_forward_pre_hook(lambda m, a, k: seen.append(k["input"]), with_kwargs=True)

    for _ in range(5):
        net.tick(torch.ones(2, 6), torch.ones(2, 3))

    assert [float(s.detach().mean()) for s in seen[-3:]] == [1.0, 2.0, 3.0]


def test_a_message_that_somebody_has_written_to_is_refused():
    net = dg.Network().add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("x", "b.input", delay=1)
    x = torch.ones(2, 6)
    net.tick(x, torch.ones(2, 3))
    x.add_(1)

    with pytest.raises(dg.NetworkError, match=r"b.input: what x sent in tick 0 has been written to since: send a copy"):
        net.tick(x, torch.ones(2, 3))


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


def test_threads_compute_in_the_precision_of_who_starts_them():
    runs = []
    for threads in (False, True):
        net = circle()
        with torch.autocast("cpu", torch.bfloat16):
            results = net.run(given(6), threads=threads)
        runs.append((everything(net), [r.outputs["a"]["guess"] for r in results]))

    assert runs[0][1][0].dtype == torch.bfloat16
    assert same(runs[0][0], runs[1][0]) and same(runs[0][1], runs[1][1])


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


def test_the_log_goes_on_over_episodes_and_knows_what_was_sent(tmp_path):
    net, _ = chain(delay=1, log=True)
    for x, y in batches(6):
        net.tick(x, y, ends=net.ticks == 2)

    assert [event.tick for event in net.log.of("fire", "f0")] == [0, 1, 2, 3, 4, 5]
    assert [(event.tick, event.port, event.to) for event in net.log.of("send", "f1")] == [
        (tick, "output", "f2.input") for tick in range(6)
    ]
    assert all(event.stale == event.tick - event.sent for event in net.log if event.stale is not None)
    assert max(event.tick for event in net.log) == 5


PHASES = {"M": {"name", "args"}, "X": {"dur"}, "i": {"s"}, "s": {"id", "cat"}, "f": {"id", "cat", "bp"}}


def test_the_trace_is_what_perfetto_reads(tmp_path):
    net = circle(log=True)
    net.run(given(12))
    net.log.trace(tmp_path / "trace.json")

    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]

    slices = [(e["tid"], e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X"]
    named = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(named.values()) == sorted(net.agents)
    for event in events:
        assert PHASES[event["ph"]] <= event.keys() and event["pid"] == 1
        if event["ph"] == "M":
            continue
        assert event["tid"] in named and isinstance(event["ts"], int)
        if event["ph"] in "sf":  # an arrow hangs on the slices that are there at its ends
            assert any(row == event["tid"] and begin <= event["ts"] <= end for row, begin, end in slices)


def test_a_decoupled_model_inside_an_agent_sees_the_agents_label():
    class Around(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 2 * self.model(x)

    inner = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    (x, y), *_ = batches(1)
    dm = dg.decouple(inner, "1", (x,), condition=dg.one_hot(3))
    net = dg.Network().add("a", Around(dm), loss=F.cross_entropy)
    before = weights(next(iter(dm.boundaries.values())).head)

    net.tick(x, y)
    net.tick(x, y)

    assert not same(before, weights(next(iter(dm.boundaries.values())).head))
