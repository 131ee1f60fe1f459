"""Networks that are killed, saved and loaded: they go on as if nothing had been, or say why they cannot."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kit import killed_network
from kit.networks import adam, batches, chain, circle, everything, given, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


def test_a_run_that_is_killed_in_the_middle_and_resumed_is_the_run_that_was_not(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = killed_network.run(tmp_path / "whole" / "run.pt", 20)
    file = tmp_path / "run.pt"
    here = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[1], Path(dg.__file__).parents[1]])),
    }
    command = [sys.executable, str(Path(killed_network.__file__)), str(file), "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=here, text=True) as process:
        for line in process.stdout:
            if int(line) == 8:  # behind the checkpoint of tick 6, in the pause
                process.send_signal(signal.SIGKILL)
                break

    assert process.returncode == -signal.SIGKILL
    assert file.exists()
    torch.manual_seed(99)
    resumed = killed_network.run(file, 20)

    assert same(everything(whole), everything(resumed))
    assert whole.log.sorted() == resumed.log.sorted()
    assert [actor.chance.get_state().tolist() for actor in whole.running.actors.values()] == [
        actor.chance.get_state().tolist() for actor in resumed.running.actors.values()
    ]


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
    rnn = dg.Recurrent(core, horizon=8, readout=nn.Linear(5, 3), loss=F.cross_entropy, optimizer=adam,
                       boundary=dg.dni_in_time(cap=0.1))  # fmt: skip
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
        saved["network"]["groups"]["b"]["param_groups"] *= 2
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


def test_firings_that_wait_for_true_gradients_are_not_saved_silently(tmp_path):
    net, _ = chain(boundary="oracle", delay=1)
    net.run(batches(1))

    with pytest.raises(dg.NetworkError, match="f0: 1 firings wait"):
        net.save(tmp_path / "run.pt")
    net.settle()
    net.save(tmp_path / "run.pt")


def test_a_checkpoint_of_another_wiring_is_refused_with_all_differences(tmp_path):
    net, _ = chain()
    net.run(batches(1))
    net.save(tmp_path / "run.pt")
    other, _ = chain(delay=1, boundary="local-loss", condition=dg.one_hot(3))

    with pytest.raises(dg.NetworkError) as caught:
        other.load(tmp_path / "run.pt", next(batches(1))[0])

    assert "links[0].delay is 1 here and 0 in the file" in str(caught.value)
    assert "links[1].boundary is 'local-loss' here and 'dni' in the file" in str(caught.value)


def test_a_checkpoint_of_more_links_is_refused(tmp_path):
    def net(links):
        made = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
        made.add("c", nn.Linear(6, 3), loss=F.mse_loss)
        for sink in ("b.input", "c.input")[:links]:
            made.connect("a.output", sink)
        return made

    one, other = net(1), net(2)
    x = torch.ones(2, 6)
    one.tick({"a.input": x, "c.input": x}, {"b": torch.ones(2, 3)})
    one.save(tmp_path / "net.pt")

    with pytest.raises(dg.NetworkError, match=r"links is \[.*\] here and \[.*\] in the file"):
        other.load(tmp_path / "net.pt", x)


def test_a_checkpoint_with_other_sizes_or_optimisers_is_refused_before_a_weight_is_touched(tmp_path):
    def net(width, optimizer):
        found = dg.Network(optimizer=optimizer).add("a", nn.Linear(3, 2), loss=F.mse_loss)
        return found.add("b", nn.Linear(3, width), loss=F.mse_loss)

    x = {"a.input": torch.ones(2, 3), "b.input": torch.ones(2, 3)}
    saved, other, third = net(4, adam), net(5, adam), net(4, sgd)
    saved.tick(x)
    saved.save(tmp_path / "run.pt")
    before = weights(other.agents["a"].module)

    with pytest.raises(dg.NetworkError, match=r"b.weight is '\[5, 3\] .*' here and '\[4, 3\] .*\n.*b.bias is '\[5\] "):
        other.load(tmp_path / "run.pt", x)
    with pytest.raises(dg.NetworkError, match=r"optimizer.a is 'SGD' here and 'Adam' in the file"):
        third.load(tmp_path / "run.pt", x)

    assert same(before, weights(other.agents["a"].module))


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

    with pytest.raises(dg.NetworkError, match=r"groups of \[1, 1\] parameters here, of \[2\] in"):
        other.load(tmp_path / "net.pt")

    assert same(before, everything(other))
    assert other.ticks == 2


LINKS = [
    (dg.dni(warm_up=5), "dni"),
    ("dni", dg.dni(refresh=3)),
    (dg.dni(replay=2), dg.dni(refresh=2, replay=1)),
    (dg.dni(warm_up=2, refresh=3, replay=1), dg.dni(warm_up=9)),
]


@pytest.mark.parametrize("links", LINKS, ids=["warm-up first", "refresh last", "replay", "all"])
def test_a_save_between_two_firings_keeps_the_answers_that_are_on_their_way(links, tmp_path):
    """The middle agent waits for the last one's answer, and owes the first one's when the tick is over."""

    def net():
        torch.manual_seed(0)
        found = dg.Network(optimizer=adam).add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 6))
        found.add("c", nn.Linear(6, 3), loss=F.cross_entropy, every=2)
        found.connect("a.output", "b.input", delay=1, boundary=links[0])
        return found.connect("b.output", "c.input", delay=1, boundary=links[1], policy="mean")

    data, whole, file = list(batches(14)), net(), tmp_path / "run.pt"
    whole.validate(data[0][0])
    saved = {}
    for at, tick in enumerate(data):
        if not any(actor.waiting for actor in whole.running.actors.values()):
            whole.save(file)
            saved[at] = file.read_bytes()
        whole.tick(*tick)

    for at, content in saved.items():
        file.write_bytes(content)
        second = net()
        second.load(file, data[0][0])
        second.run(data[at:])
        assert same(everything(whole), everything(second)), at
    assert len(saved) > 1


def ready_heads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3))
    dm = dg.decouple(model, "1", (torch.randn(4, 6),), condition=dg.one_hot(3))
    return dm.network(loss=F.cross_entropy, optimizer=adam)


@pytest.mark.parametrize("make", [lambda: chain(condition=dg.one_hot(3), head="mlp")[0], ready_heads, predicting])
@pytest.mark.parametrize("example", [True, False], ids=["example", "no example"])
@pytest.mark.parametrize("used", [True, False], ids=["used", "new"])
def test_a_file_of_before_the_first_tick_loads_and_goes_on_bitwise(make, example, used, tmp_path):
    data, whole = list(batches(6)), make()
    torch.manual_seed(5)
    whole.pause(next(iter(whole.agents)))
    whole.save(tmp_path / "run.pt")
    whole.resume(next(iter(whole.agents)))
    whole.run(data)

    torch.manual_seed(99)
    second = make()
    for module in second.modules().values():
        for p in module.parameters():
            nn.init.normal_(p)
    if used:
        second.run(data[3:])
    second.load(tmp_path / "run.pt", *([data[0][0]] if example else []))
    assert [agent.present for agent in second.agents.values()].count(False) == 1
    second.resume(next(iter(whole.agents)))
    second.run(data)

    assert same(everything(whole), everything(second))
    assert second.ticks == len(data)


def test_a_refused_file_does_not_make_a_new_network_run(tmp_path):
    one, other = chain()[0], chain(p_update=0.5)[0]
    one.tick(*next(batches(1)))
    one.save(tmp_path / "run.pt")

    with pytest.raises(dg.NetworkError, match=r"p_update is 0\.5 here"):
        other.load(tmp_path / "run.pt", torch.ones(2, 6))

    other.add("more", nn.Linear(3, 3))  # it can still be wired


@pytest.mark.parametrize("dtype", [torch.double, torch.half])
def test_weights_of_another_precision_are_refused(dtype, tmp_path):
    def net(of=torch.float):
        return dg.Network(optimizer=sgd).add("a", nn.Linear(6, 3, dtype=of), loss=F.mse_loss)

    one = net()
    one.tick(torch.ones(2, 6), torch.ones(2, 3))
    one.save(tmp_path / "run.pt")

    with pytest.raises(dg.NetworkError, match=r"a.weight is '\[3, 6\] float(64|16)' here and '\[3, 6\] float32'"):
        net(dtype).load(tmp_path / "run.pt", torch.ones(2, 6, dtype=dtype))


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (torch.zeros(1, 5), torch.zeros(5), r"'tensor \[1, 5\]' here and 'tensor \[5\]' in the file"),
        (torch.zeros(1, 5), (5,), r"'tensor \[1, 5\]' here and \[5\] in the file"),
        (lambda batch: torch.zeros(batch, 5), None, r"'function' here and None in the file"),
    ],
    ids=["shape", "sizes", "function"],
)
def test_a_checkpoint_with_another_initial_value_is_refused(here, there, words, tmp_path):
    def net(initial):
        made = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 5)).add("b", nn.Linear(5, 2), loss=F.mse_loss)
        return made.connect("a.output", "b.input", initial=initial)

    saved, other = net(there), net(here)
    saved.save(tmp_path / "net.pt")

    with pytest.raises(dg.NetworkError, match=rf"links\[0\].initial is {words}"):
        other.load(tmp_path / "net.pt", torch.ones(2, 6))
