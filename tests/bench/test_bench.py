"""A model beside itself: all ways of learning start alike, see the same batches, and leave the user what is his."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnigraph as dg
from dnigraph.bench import bench as room
from dnigraph.bench.batches import Batch, as_batch, endless

CPU = torch.device("cpu")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def data(count=5):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 6, generator=generator) for _ in range(count)]
    return [(x, x[:, :3].argmax(1)) for x in batches]


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.5)


def benched(net=None, **options):
    options = {"condition": dg.one_hot(3), "steps": 12, "optimizer": sgd, "check": False, **options}
    return dg.bench(net or model(), "2", options.pop("data", data()), loss=F.cross_entropy, **options)


def test_all_ways_of_learning_are_there_and_backprop_is_the_loop_by_hand():
    net, batches = model(), data()
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()

    report = benched(net.eval(), test=batches[:2])

    assert torch.equal(torch.get_rng_state(), drawn) and not net.training
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
    assert [o.arm for o in report.outcomes] == [
        "backprop", "auto", "local-loss", "dni", "silent", "freeze after 2 steps", "true every 8th step",
    ]  # fmt: skip
    assert [o.control for o in report.outcomes] == [False] * 4 + [True] * 3
    plain = model().train()
    optimizer, losses = sgd(plain.parameters()), []
    for i in range(12):
        torch.manual_seed(i)
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(batches[i % 5][0]), batches[i % 5][1])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert report["backprop"].losses == losses
    plain.eval().requires_grad_(False)
    tested = [float(F.cross_entropy(plain(x), y)) for x, y in batches[:2]]
    assert report["backprop"].test_loss == pytest.approx(sum(tested) / 2)
    assert report["freeze after 2 steps"].losses[:3] == losses[:3]  # backprop so far
    assert report["silent"].losses[1] != losses[1]
    assert 0 < report["silent"].held <= report["backprop"].held
    assert report["dni"].cosines.keys() == {"2"} and report["dni"].weights.keys() == {"part_0", "part_1"}


def test_a_bench_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole = benched()

    first = benched(folder=tmp_path, seconds=1e-9)
    assert first.stopped and first.steps == 1
    monkeypatch.setattr(room, "KEEP", 0.0)  # kept after every round
    rest = benched(folder=tmp_path)

    assert not rest.stopped and rest.steps == 12
    for one, other in zip(whole.outcomes, rest.outcomes, strict=True):
        assert one.losses == other.losses
    assert len(list(tmp_path.glob("after_*"))) == 1
    with pytest.raises(dg.DniGraphError, match="has the state of another bench"):
        benched(folder=tmp_path, seed=5)


def test_a_model_that_is_run_whole_on_hooks_takes_part():
    report = benched(capture="hooks", boundaries=["dni"], condition=None)

    assert report["dni"].losses[0] == report["backprop"].losses[0]
    assert report["dni"].weights == {}


def test_boundaries_of_ones_own_have_names():
    report = benched(boundaries={"mine": dg.warm_up("local-loss", 3), "true": "oracle"})

    assert report["true"].losses == pytest.approx(report["backprop"].losses)
    assert report["mine"].losses[:3] == pytest.approx(report["backprop"].losses[:3])


class Inside(nn.Module):
    """Computes its loss itself, from named arguments."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x, labels):
        logits = self.head(self.body(x))
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


def test_batches_may_be_dicts_and_the_loss_inside_the_model():
    batches = [{"x": x, "labels": y} for x, y in data()]

    report = dg.bench(Inside(), "body", batches, loss="loss", condition=dg.one_hot(3), steps=10, check=False)

    assert report["auto"].losses[0] == report["backprop"].losses[0]
    assert report.parts == 2


# ---- data


def test_what_a_loader_yields_becomes_calls():
    x, y = torch.zeros(2, 3), torch.ones(2)

    assert as_batch((x, x, y)).args == (x, x) and as_batch([x, y]).target is y
    batch = as_batch({"input_ids": x, "labels": y})
    assert batch.args == () and batch.kwargs.keys() == {"input_ids", "labels"} and batch.target is y
    assert as_batch({"x": x}).target is None
    assert as_batch(batch) is batch
    for strange in (x, (x,), 3):
        with pytest.raises(dg.DniGraphError, match="where a batch is a tuple"):
            as_batch(strange)


def test_a_loader_is_read_again_and_again_and_a_generator_cannot_be():
    again = endless(data(2), CPU)
    assert torch.equal(next(again).args[0], [next(again), next(again)][1].args[0])
    once = endless(iter(data(1)), CPU)
    assert isinstance(next(once), Batch)
    with pytest.raises(dg.DniGraphError, match="read through"):
        next(once)
    with pytest.raises(dg.DniGraphError, match="yields no batch"):
        next(endless([], CPU))


def test_all_arguments_that_do_not_fit_are_named():
    with pytest.raises(dg.DniGraphError) as told:
        dg.bench(3, "2", [], loss=F.cross_entropy, steps=2, seconds=0, boundaries="dni")

    for words in ("model is a int", "steps=2", "seconds=0", "boundaries='dni' (names in a list"):
        assert words in str(told.value)
