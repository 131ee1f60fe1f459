"""Receivers that predict their messages."""

import pytest
import torch
import torch.nn.functional as F
from kit.networks import adam, batches, same, sgd, weights
from torch import nn

import dnigraph as dg

pytestmark = pytest.mark.filterwarnings("ignore::dnigraph.UnconditionedWarning")


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
        (output,) = net.tick(x, y).outputs["part_1"].values()
    assert torch.equal(output, model[2](real)), "in eval mode nothing is predicted"


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


def test_a_network_that_begins_in_eval_mode_predicts_nothing():
    net = dg.Network().add("a", nn.Linear(6, 6)).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", synthetic=True)
    x = torch.ones(2, 6)

    found = net.eval().tick(x).outputs["b"]["output"]

    a, b = (net.agents[name].module for name in "ab")
    assert torch.equal(found, b(a(x)))


def test_what_a_predictor_looks_at_must_be_there():
    net = dg.Network(optimizer=sgd).add("a", nn.Linear(6, 6), every=2).add("b", nn.Linear(6, 3), loss=F.mse_loss)
    net.connect("a.output", "b.input", synthetic=["a.input"], boundary="oracle")
    net.validate({"a.input": torch.ones(2, 6)})

    with pytest.raises(dg.NetworkError, match=r"a\.input is needed in tick 0"):
        net.tick({}, torch.ones(2, 3))
