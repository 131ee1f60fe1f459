"""A decoupled model as a network."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.networks import adam, batches, sgd
from torch import nn

import dnigraph as dg
from dnigraph.decoupled.cache import PATHS

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


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
    ("loss", "words"), [(None, "loss=None: it is a function"), ("zz", "loss='zz': there is no such output")]
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

    assert all(isinstance(actor.group.optimizer, torch.optim.SGD) for actor in net.running.actors.values())
    with pytest.raises(dg.DniGraphError, match="no part or boundary is called 'prat_1'; nearest: part_1"):
        dm.network(loss=F.cross_entropy, optimizer={"prat_1": sgd})


class Forked(nn.Module):
    """Another graph in eval mode, and another way for large batches."""

    def __init__(self):
        super().__init__()
        self.low, self.norm, self.drop = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.middle, self.top = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, unused=None):
        h = self.drop(self.norm(self.low(x)).relu())
        if len(x) > 4:
            h = self.middle(h).relu()
        return self.top(h if self.training else h + 1)


def forked(**options):
    torch.manual_seed(0)
    example = (torch.randn(4, 6), *options.pop("more", ()))
    return dg.decouple(Forked(), "norm", example, condition=dg.one_hot(3), **options)


def rows(count, seed):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def output_of(result):
    (output,) = list(result.outputs.values())[-1].values()
    return output


@pytest.mark.parametrize("count", [4, 8])
def test_in_eval_mode_and_aside_the_network_computes_what_the_model_does(count):
    dm = forked()
    net = dm.network(loss=F.cross_entropy, optimizer=adam)
    (x, y), (other, _) = rows(4, 1), rows(count, 2)
    net.tick(x, y)

    with net.aside():
        aside = output_of(net.tick(other))
    assert net.training and dm.training
    net.eval()
    evaluated = output_of(net.tick(other))

    assert not dm.training
    expected = dm.original(other)
    assert torch.equal(evaluated, expected) and torch.equal(aside, expected)
    net.train().tick(x, y)
    assert dm.training


@pytest.mark.parametrize("boundary", ["dni", dg.dni(warm_up=2, refresh=3), "oracle", "local-loss"])
def test_on_every_way_through_the_model_a_network_learns_what_local_learns(boundary, tmp_path):
    one, two, three = (forked(boundary=boundary) for _ in range(3))
    local = dg.Local(one, loss=F.cross_entropy, optimizer=adam)
    net, resumed = (dm.network(loss=F.cross_entropy, optimizer=adam) for dm in (two, three))
    ticks = [rows(count, i) for i, count in enumerate((4, 8, 8, 4, 8, 4, 4, 8))]

    for i, (x, y) in enumerate(ticks):
        torch.manual_seed(i)
        local.step(x, target=y)
        torch.manual_seed(i)
        net.tick(x, y)
        if i == 4:
            net.save(tmp_path / "net.pt")
            resumed.load(tmp_path / "net.pt", ticks[0][0])
        elif i > 4:
            torch.manual_seed(i)
            resumed.tick(x, y)

    for dm in (two, three):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), dm.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), dm.buffers(), strict=True))


def test_an_input_that_no_part_reads_need_not_be_given():
    dm = forked(more=(torch.ones(2),))
    net = dm.network(loss=F.cross_entropy)

    net.tick(*rows(8, 0))

    assert net.inputs == ["x"]


def test_a_network_and_a_model_in_different_modes_are_refused():
    dm = forked()
    net = dm.network(loss=F.cross_entropy)
    dm.eval()
    with pytest.raises(dg.NetworkError, match="the model is in eval mode, its network in train mode"):
        net.tick(*rows(4, 0))
    net.eval()
    dm.train()
    with pytest.raises(dg.NetworkError, match="the model is in train mode, its network in eval mode"):
        net.tick(*rows(4, 0))
    net.train().tick(*rows(4, 0))


def test_a_decoupled_models_network_takes_no_more_agents_and_is_not_copied():
    net = forked().network(loss=F.cross_entropy)

    with pytest.raises(dg.NetworkError, match="one agent of a larger network"):
        net.add("more", nn.Linear(3, 3))
    with pytest.raises(dg.NetworkError, match="one agent of a larger network"):
        net.connect("part_1.linear", "more.input")
    with pytest.raises(dg.NetworkError, match=r"copy\.deepcopy\(dm\)\.network"):
        copy.deepcopy(net)


def test_a_paused_part_stays_paused_on_another_way():
    dm = forked()
    net = dm.network(loss=F.cross_entropy)
    net.tick(*rows(4, 0))
    net.pause("part_1")
    assert net.tick(*rows(8, 1)).fired == ["part_0"]
    net.resume("part_1")
    assert net.tick(*rows(4, 2)).fired == ["part_0", "part_1"]


def test_on_threads_all_ticks_take_one_way():
    one, other = (forked().network(loss=F.cross_entropy, optimizer=adam) for _ in range(2))
    ticks = [rows(8, i) for i in range(3)]
    for net, threads in ((one, True), (other, False)):
        torch.manual_seed(0)
        net.run(ticks[:1])
        net.run(ticks[1:], threads=threads)

    with pytest.raises(dg.NetworkError, match="tick 2 of the run takes another way"):
        one.run([*ticks[:2], rows(4, 5)], threads=True)
    assert one.ticks == other.ticks == 3


def test_ways_that_the_model_has_forgotten_are_forgotten_here_too():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.top = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.low(x).tanh()
            for _ in range(len(x)):  # a way of its own for each size
                h = h * 1.01
            return self.top(h)

    dm = dg.decouple(Steps(), "low", (torch.ones(2, 6),), condition=dg.one_hot(3))
    net = dm.network(loss=F.cross_entropy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.WaysWarning)
        for count in range(2, 20):
            net.tick(*rows(count, count))

    assert len(net._ways) <= PATHS + 2
    net.tick(*rows(2, 0))  # the first way, on which it is saved, is still there


def test_heads_that_see_no_label_are_told_of_once_by_who_decouples():
    with pytest.warns(dg.UnconditionedWarning):
        dm = dg.decouple(Forked(), "norm", (torch.randn(4, 6),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dm.network(loss=F.cross_entropy).tick(*rows(4, 0))
