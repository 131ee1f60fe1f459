"""A decoupled model as a network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.models import ZOO, cut_up, labels, loss_of
from kit.networks import adam, batches, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


BOUNDARIES = {
    "dni": "dni",
    "dni with all options": dg.dni(warm_up=1, refresh=3, replay=1),
    "blend": dg.dni(blend=0.5),
    "oracle": "oracle",
    "local loss": "local-loss",
    "silent": dg.silent(warm_up=1),
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", ZOO)
def test_a_decoupled_model_as_a_network_learns_what_local_learns(name, boundary):
    dm, args = cut_up(name, check=False, boundary=BOUNDARIES[boundary])
    other = copy.deepcopy(dm)
    run, net = dg.Local(dm, loss=loss_of, optimizer=adam), other.network(loss=loss_of, optimizer=adam)
    y, given = labels(len(args[0])), dict(zip(other.plan.inputs, args, strict=True))
    net.validate(given)

    for step in range(3):
        torch.manual_seed(step)  # for dropout
        run.step(*args, target=y)
        torch.manual_seed(step)
        net.tick(given, y)

    assert same(weights(dm.original), weights(other.original))
    assert all(same(weights(b), weights(other.boundaries[k])) for k, b in dm.boundaries.items())


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
