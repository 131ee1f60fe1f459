"""Networks in trouble: what is asked wrongly, what fails in the middle, what is killed."""

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import killing
import pytest
import torch
import torch.nn.functional as F
from test_network import Cell, adam, batches, chain, same, sgd, squared, weights
from test_network_runs import circle, everything, given
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


class Moody(nn.Module):
    """Fails when it is told to."""

    def __init__(self):
        super().__init__()
        self.layer, self.bad = nn.Linear(6, 6), False

    def forward(self, x):
        if self.bad:
            raise ValueError("not today")
        return self.layer(x)


def fork(**options):
    """a feeds b and c; b may fail, before c has read."""
    torch.manual_seed(0)
    net = dg.Network(optimizer=sgd, log=True)
    net.add("a", nn.Linear(6, 6)).add("b", Moody(), loss=F.mse_loss).add("c", nn.Linear(6, 6), loss=F.mse_loss)
    net.connect("a.output", "b.x", **options)
    net.connect("a.output", "c.input", **options)
    return net, torch.ones(2, 6), {"b": torch.zeros(2, 6), "c": torch.zeros(2, 6)}


# ---- killed


def test_a_run_that_is_killed_in_the_middle_and_resumed_is_the_run_that_was_not(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = killing.run(tmp_path / "whole" / "run.pt", 20)
    file = tmp_path / "run.pt"
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, Path(dg.__file__).parents[1]])),
    }
    command = [sys.executable, str(Path(killing.__file__)), str(file), "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=here, text=True) as process:
        for line in process.stdout:
            if int(line) == 8:  # behind the checkpoint of tick 6, in the pause
                process.send_signal(signal.SIGKILL)
                break

    assert process.returncode == -signal.SIGKILL
    assert file.exists()
    torch.manual_seed(99)
    resumed = killing.run(file, 20)

    assert same(everything(whole), everything(resumed))
    assert whole.log.sorted() == resumed.log.sorted()
    assert [actor.chance.get_state().tolist() for actor in whole._actors().values()] == [
        actor.chance.get_state().tolist() for actor in resumed._actors().values()
    ]


def test_a_checkpoint_with_other_sizes_or_optimisers_is_refused_before_a_weight_is_touched(tmp_path):
    def net(width, optimizer):
        found = dg.Network(optimizer=optimizer).add("a", nn.Linear(3, 2), loss=F.mse_loss)
        return found.add("b", nn.Linear(3, width), loss=F.mse_loss)

    x = {"a.input": torch.ones(2, 3), "b.input": torch.ones(2, 3)}
    saved, other, third = net(4, adam), net(5, adam), net(4, sgd)
    saved.tick(x)
    saved.save(tmp_path / "run.pt")
    before = weights(other.agents["a"].module)

    with pytest.raises(dg.NetworkError, match=r"b.weight\[0\] is 5 here and 4 in the file\n.*b.bias\[0\] is 5 here"):
        other.load(tmp_path / "run.pt", x)
    with pytest.raises(dg.NetworkError, match=r"optimizer.a\[0\] is 'SGD' here and 'Adam' in the file"):
        third.load(tmp_path / "run.pt", x)

    assert same(before, weights(other.agents["a"].module))


def unlocked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 3))
    options = {"condition": dg.one_hot(3), "boundary": dg.dni(replay=2, blend=0.0), "unlock": "forward"}
    dm = dg.decouple(model, ["2", "3"], (torch.randn(4, 6),), **options)
    return dm.network(loss=F.cross_entropy, optimizer=adam, p_update=0.5, log=True)


def predicting():
    torch.manual_seed(0)
    net = dg.Network(optimizer=adam, log=True, condition=dg.one_hot(3))
    net.add("a", nn.Linear(6, 6), p_update=0.7).add("b", nn.Linear(6, 6), every=2)
    net.add("c", nn.Linear(6, 3), every=3, loss=F.cross_entropy)
    net.connect("x", "a.input")
    net.connect("a.output", "b.input", synthetic=True, delay=1)
    net.connect("b.output", "c.input", policy="mean", delay=2)
    return net


def recurrent():
    torch.manual_seed(0)
    core = nn.LSTM(6, 5)
    rnn = dg.Recurrent(core, horizon=8, readout=nn.Linear(5, 3), loss=F.cross_entropy, optimizer=adam, cap=0.1)
    return rnn.network(torch.randn(8, 2, 6), log=True)


@pytest.mark.parametrize("make", [unlocked, predicting, recurrent])
@pytest.mark.parametrize("at", [1, 4, 5])
def test_whatever_it_is_made_of_a_resumed_network_goes_on_bitwise(make, at, tmp_path):
    data = list(batches(12))
    if make is recurrent:
        data = [(x.view(8, 1, 6).expand(8, 2, 6), y.view(8, 1).expand(8, 2)) for x, y in data]
    whole, first = make(), make()
    whole.validate(data[0][0])
    first.validate(data[0][0])
    torch.manual_seed(5)  # for dropout
    whole.run(data)
    torch.manual_seed(5)
    first.run(data[:at])
    first.save(tmp_path / "run.pt")

    torch.manual_seed(99)
    second = make()
    second.load(tmp_path / "run.pt", data[0][0])
    second.run(data[at:])

    assert same(everything(whole), everything(second))
    assert whole.log.sorted() == second.log.sorted()


# ---- fails in the middle


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
    assert not any(actor.waiting or any(box.sent for box in actor.outboxes) for actor in net._actors().values())


def test_a_module_that_fails_on_threads_hands_its_error_to_the_caller_and_the_run_can_go_on():
    net, x, targets = fork()
    net.run([(x, targets)] * 2, threads=True)
    net.agents["b"].module.bad = True

    with pytest.raises(ValueError, match="not today"):
        net.run([(x, targets)] * 50, threads=True, capacity=1)

    net.agents["b"].module.bad = False
    assert 3 <= net.ticks <= 8  # so many had begun, in the fastest thread
    assert net.tick(x, targets).fired == ["a", "b", "c"]


# ---- asked wrongly


def test_everything_that_is_wrong_with_wiring_and_example_is_said_at_once():
    net = dg.Network().add("a", Cell(), loss=squared).add("b", nn.Linear(5, 2))
    net.connect("a.said", "b.inputs")
    net.connect("b.output", "b.input", delay=0)

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({"a.x": torch.ones(2, 3), "a.head": torch.ones(2, 4)})

    said = str(caught.value)
    for words in (
        "b.inputs: Linear has no input 'inputs'; nearest: input", "a circle without delay: b → b",
        "b can never learn", "there is no input 'a.head'; nearest: a.heard", "a.heard is fed by no link and not given",
    ):  # fmt: skip
        assert words in said


def test_what_fails_because_of_another_agent_is_not_called_a_circle():
    net = dg.Network().add("a", nn.Linear(6, 5)).add("b", nn.Linear(5, 2), loss=F.mse_loss)
    net.connect("a.output", "b.input")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick(torch.ones(2, 7))

    assert len(caught.value.problems) == 1
    assert "a cannot take what it is given (input [2, 7])" in str(caught.value)


def test_a_label_that_is_missing_is_asked_for_in_words_of_networks():
    net, _ = chain(condition=dg.one_hot(3))
    (x, y), *_ = batches(1)
    net.tick(x, y)
    before = weights(net)

    with pytest.raises(dg.NetworkError, match=r"in tick 1 there is none for f0: .*label=\{'f0': ...\}"):
        net.tick(x)

    assert net.ticks == 1 and same(before, weights(net))  # nobody has run


@pytest.mark.parametrize("one", [{"x": 1}, torch.ones(2), (1, 2, 3, True, 5)])
def test_run_says_what_it_takes(one):
    net, _ = chain()

    with pytest.raises(dg.NetworkError, match=r"a tuple \(inputs, targets, label, ends\) for each tick"):
        net.run([one])


@pytest.mark.parametrize("capacity", [0, -5, True, 1.5, "x"])
def test_queues_hold_at_least_one_packet(capacity):
    net, _ = chain()
    (x, y), *_ = batches(1)

    with pytest.raises(dg.NetworkError, match=r"capacity=.* a whole number from 1 on"):
        net.run([(x, y)], threads=True, capacity=capacity)


class Late(nn.Module):
    """Hears the last tick's message beside what it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)

    def forward(self, x, heard):
        return self.layer(torch.cat((x, heard), 1))


def test_messages_of_batches_of_another_size_are_told():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
    net.connect("x", ["a.input", "b.x"])
    net.connect("a.output", "b.heard", delay=1)
    big, small = torch.ones(4, 6), torch.ones(2, 6)
    net.tick(big, torch.ones(4, 3))

    with pytest.raises(RuntimeError) as caught:
        net.tick(small, torch.ones(2, 3))

    said = "its inputs are of different sizes: 2 (x from x), 4 (heard from a.output, sent 1 ticks before)"
    assert any(said in note for note in caught.value.__notes__)
    net.finish()
    net.tick(big, torch.ones(4, 3), ends=True)
    net.tick(small, torch.ones(2, 3))


@pytest.mark.parametrize("policy", ["mean", dg.stack(2)])
def test_messages_of_two_shapes_make_no_mean_and_no_stack(policy):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6))
    net.add("b", nn.Sequential(nn.Flatten(0, -2), nn.Linear(6, 3)), every=2, loss=lambda made, y: made.square().mean())
    net.connect("a.output", "b.input", policy=policy)
    net.tick({"a.input": torch.ones(4, 6)}, {"b": torch.ones(())})

    with pytest.raises(
        dg.NetworkError, match=r"b.input reads the .* of what a.output sent, and that is \[4, 6\] in tick 0"
    ):
        net.tick({"a.input": torch.ones(2, 6)}, {"b": torch.ones(())})


def test_a_label_for_messages_without_a_batch_is_refused():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return self.layer(x).mean(0)

    net = (
        dg.Network(optimizer=sgd).add("a", Mean()).add("b", nn.Linear(5, 5), loss=lambda made, y: made.square().mean())
    )
    net.connect("a.output", "b.input", condition=dg.one_hot(3))

    with pytest.raises(dg.NetworkError, match=r"the message is \[5\], and the batch has 4"):
        net.tick(torch.ones(4, 6), torch.ones(4))


def test_what_the_library_says_of_a_module_is_told_whole():
    rnn = dg.Recurrent(nn.GRU(6, 4), horizon=2, loss=F.mse_loss, optimizer=sgd)
    net = rnn.network(torch.ones(2, 3, 6))

    with pytest.raises(dg.NetworkError, match=r"the window has 5 steps, the horizon is 2"):
        net.validate(torch.ones(5, 3, 6))


def test_a_copy_of_a_network_goes_on_as_the_network_does():
    net, _ = chain(condition=dg.one_hot(3))
    for x, y in batches(4):
        net.tick(x, y)
    other = copy.deepcopy(net)

    for x, y in batches(4):
        net.tick(x, y)
        other.tick(x, y)

    assert same(weights(net), weights(other))


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


@pytest.mark.parametrize("threads", [False, True])
def test_an_input_of_the_network_must_have_come(threads):
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3), loss=F.mse_loss).connect("x", "a.input")
    net.validate(torch.ones(2, 6))
    there, lacking = ({"x": torch.ones(2, 6)}, torch.ones(2, 3)), ({}, torch.ones(2, 3))

    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([lacking, there], threads=threads)
    net.run([there, lacking], threads=threads)  # the latest, again
    with pytest.raises(dg.NetworkError, match="x is needed in tick 0"):
        net.run([(*there, None, True), lacking], threads=threads)


def test_what_a_predictor_looks_at_must_be_there():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6), every=2).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", synthetic=["a.input"], boundary="oracle")
    net.validate({"a.input": torch.ones(2, 6)})

    with pytest.raises(dg.NetworkError, match=r"a\.input is needed in tick 0"):
        net.tick({}, torch.ones(2, 3))


@pytest.mark.parametrize(
    "initial", [lambda batch: torch.ones(batch, 6), torch.ones(1, 6), (6,)], ids=["function", "one sample", "sizes"]
)
def test_what_is_read_first_fits_every_batch(initial):
    net = dg.Network(optimizer=sgd).add("a", Late2(), loss=lambda made, y: made.square().mean())
    net.connect("a.output", "a.heard", delay=1, initial=initial)

    for size in (4, 2, 4):
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size))
        net.tick({"a.x": torch.ones(size, 6)}, torch.ones(size), ends=True)


class Late2(nn.Module):
    """Hears itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 6)

    def forward(self, x, heard):
        return self.layer(torch.cat((x, heard), 1))


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


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    def halves(parameters):
        groups = [{"params": parameters[:1]}, {"params": parameters[1:]}] if len(parameters) > 1 else parameters
        return torch.optim.SGD(groups, 0.1)

    (x, y), *_ = batches(1)
    net, _ = chain()
    net.tick(x, y)
    net.save(tmp_path / "net.pt")
    other, _ = chain(optimizer=halves)
    other.tick(x, y)
    other.tick(x, y)
    before = copy.deepcopy(everything(other))

    with pytest.raises(dg.NetworkError, match="different number of parameter groups"):
        other.load(tmp_path / "net.pt")

    assert same(before, everything(other))
    assert other.ticks == 2


@pytest.mark.parametrize("fits", [False, True])
def test_a_load_in_the_middle_of_an_episode_of_oracles(fits, tmp_path):
    def net(clip=None):
        torch.manual_seed(0)
        found = (
            dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6), clip=clip).add("b", nn.Linear(6, 3), loss=F.mse_loss)
        )
        return found.connect("a.output", "b.input", delay=1, boundary="oracle")

    tick = torch.ones(2, 6), torch.ones(2, 3)
    one, other = net(), net()
    other.tick(*tick, ends=True)
    other.save(tmp_path / "net.pt")
    saved = torch.load(tmp_path / "net.pt", weights_only=False)
    if not fits:
        saved["network"]["actors"]["b"]["optimizer"]["param_groups"] *= 2
        torch.save(saved, tmp_path / "net.pt")
    for _ in range(3):
        one.tick(*tick)
    kept = net()
    for _ in range(3):
        kept.tick(*tick)

    if fits:
        one.load(tmp_path / "net.pt")
        one.save(tmp_path / "again.pt")  # nothing waits any more
    else:
        with pytest.raises(dg.NetworkError):
            one.load(tmp_path / "net.pt")
        one.tick(*tick, ends=True)
        kept.tick(*tick, ends=True)
        assert same(everything(one), everything(kept))


def test_a_network_can_be_pickled_in_mid_run():
    net, _ = chain(delay=1)
    for x, y in batches(3):
        net.tick(x, y)
    message = net._actors()["f1"].inboxes[0].entries[0].message
    message.value.add_(0)

    assert message.spoilt and not pickle.loads(pickle.dumps(message)).spoilt


def test_a_circle_beside_an_input_says_what_it_needs():
    net = dg.Network(optimizer=sgd).add("a", Late2(), loss=lambda made, y: made.square().mean())
    net.connect("x", "a.x")
    net.connect("a.output", "a.heard")

    with pytest.raises(dg.NetworkError, match=r"in a circle: connect it with initial="):
        net.tick(torch.ones(2, 6), 0)


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


def test_arguments_of_agents_and_links_that_do_not_fit_are_named():
    net = dg.Network()
    with pytest.raises(dg.NetworkError, match=r"clip=-1"):
        net.add("a", nn.Linear(2, 2), clip=-1)
    with pytest.raises(dg.NetworkError, match=r"outputs=\['x', 'x'\]"):
        net.add("a", nn.Linear(2, 2), outputs=["x", "x"])
    with pytest.raises(dg.NetworkError) as caught:
        net.connect(1, ["a.x", 3], boundary="dnl", head="hh", initial=(5.5,))

    for words in ("1: an output is called", "3: an input is called", "boundary='dnl'", "head='hh'", "initial=(5.5,)"):
        assert words in str(caught.value)
    net.add("a", nn.Linear(2, 2), outputs="mean", loss=F.mse_loss)
    assert "mean" in net.tick(torch.ones(3, 2), torch.ones(3, 2)).outputs["a"]


def test_outputs_that_are_not_as_many_as_their_names_are_told():
    net = dg.Network().add("a", nn.LSTM(2, 2), outputs=["x"], loss=lambda made, y: made[0].mean())

    with pytest.raises(dg.NetworkError, match="outputs names 1, and LSTM returns 2 values"):
        net.tick(torch.ones(3, 4, 2), 0)


def test_all_inputs_that_lack_are_named_at_once():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", Late(), loss=F.mse_loss)
    net.connect("a.output", "b.heard")

    with pytest.raises(dg.NetworkError) as caught:
        net.tick({})

    assert "a.input is fed by no link" in str(caught.value) and "b.x is fed by no link" in str(caught.value)


def test_a_network_that_waits_for_true_gradients_cannot_be_copied():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", delay=2, boundary="oracle")
    net.tick(torch.ones(2, 6), torch.ones(2, 3))

    with pytest.raises(dg.NetworkError, match="cannot be copied now"):
        copy.deepcopy(net)


@pytest.mark.parametrize("boundary", [dg.silent(refresh=50), dg.dni(warm_up=2), "oracle"])
def test_no_graph_outlives_its_firing(boundary):
    net, _ = chain(boundary=boundary)
    made = []
    net.agents["f0"].module.register_forward_hook(lambda module, args, output: made.append(weakref.ref(output)))

    for x, y in batches(4):
        net.tick(x, y)

    assert [output() for output in made] == [None] * len(made)


def test_events_of_a_kind_that_there_is_not_are_refused():
    with pytest.raises(dg.NetworkError, match=r"there is no kind 'targets'; nearest: target"):
        fork()[0].log.of("targets")


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


@pytest.mark.parametrize(
    ("loss", "words"), [(None, "loss=None is no function"), ("zz", "loss='zz': there is no such output")]
)
def test_a_loss_that_is_none_is_refused_where_the_network_is_made(loss, words):
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "1", (torch.ones(2, 6),))

    with pytest.raises(dg.NetworkError, match=words):
        dm.network(loss=loss)


def test_optimisers_of_a_decoupled_model_are_found_by_glob_and_strange_names_refused():
    dm = dg.decouple(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "1", (torch.ones(2, 6),))
    (x, y), *_ = batches(1)

    net = dm.network(loss=F.cross_entropy, optimizer={"part_*": sgd})
    net.tick(x, y)

    assert all(isinstance(actor.group.optimizer, torch.optim.SGD) for actor in net._actors().values())
    with pytest.raises(dg.DniGraphError, match="no part or boundary is called 'prat_1'; nearest: part_1"):
        dm.network(loss=F.cross_entropy, optimizer={"prat_1": sgd})


# ---- what came out wrong


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


# ---- threads, log


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
        if other._built is not None:
            chance.shuffle(other._wirings[True].order)
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
