"""The stacked model of the full-length benchmark learns what each of its variants does alone, by autograd."""

import pytest

pytest.importorskip("benchmarks.full_length", reason="the benchmarks are only in a checkout")

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import full_length as bench
from benchmarks import rows

DOUBLE = torch.float64
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # weights move by up to 0.08; Adam makes much of the rounding of small gradients


def data(count=96):
    generator = torch.Generator().manual_seed(3)
    x, test_x = (torch.rand(count, 28, 28, generator=generator) for _ in range(2))
    y, test_y = (torch.randint(10, (count,), generator=generator) for _ in range(2))
    return bench.with_noise(x, y, test_x, test_y).to(torch.device("cpu"), DOUBLE)


def block(sizes, stack, place, zero=False):
    """The layers at a place of a stack, as modules."""
    modules, parameters = [], iter(stack.parameters)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(a, b, dtype=DOUBLE)
        linear.weight.data = next(parameters)[place].detach().t().clone()
        linear.bias.data = next(parameters)[place, 0].detach().clone()
        if i == len(sizes) - 2:
            modules.append(nn.Sequential(linear))
            assert not zero or not linear.weight.any()
        else:
            next(parameters), next(parameters)
            modules.append(nn.Sequential(linear, nn.BatchNorm1d(b, dtype=DOUBLE), nn.ReLU()))
    return nn.ModuleList(modules)


class Alone:
    """One variant with modules, autograd and an optimiser of its own."""

    def __init__(self, ensemble, place):
        self.variant, net = ensemble.variants[place], ensemble.net
        self.net = block(net.sizes, net, place)
        self.heads = nn.ModuleList()
        for heads in ensemble.heads:
            if place in heads.own.tolist():
                at, count = heads.own.tolist().index(place), len(heads.own)
                sizes = heads.layers.sizes
                self.heads.extend(
                    nn.Sequential(*block(sizes, heads.layers, cut * count + at, zero=True)) for cut in range(heads.cuts)
                )
        self.adam = torch.optim.Adam([*self.net.parameters(), *self.heads.parameters()], bench.RATE)

    def step(self, x, y, warm):
        truth = F.one_hot(y, 10).to(DOUBLE)
        entered, made = [x], []
        for layer in self.net:
            made.append(layer(entered[-1]))
            entered.append(made[-1].detach().requires_grad_())
        self.adam.zero_grad()
        F.cross_entropy(made[-1], y).backward()
        for i in reversed(range(len(made) - 1)):
            target = entered[i + 1].grad
            if self.heads:
                seen = entered[i + 1].detach()
                estimate = self.heads[i](torch.cat((seen, truth), 1) if self.variant.head == 0 else seen)
                made[i].backward(estimate.detach())
                (estimate - target).square().sum(1).mean().backward()
            else:
                made[i].backward(target * self.variant.true[not warm])
        self.adam.step()


def trained(layers, steps, warm_steps):
    images = data()
    ensemble = bench.Ensemble(list(bench.VARIANTS.values()), layers, 1, images)
    alone = [Alone(ensemble, place) for place in range(len(ensemble.variants))]
    generator = torch.Generator().manual_seed(0)
    for i in range(steps):
        if i == warm_steps:
            ensemble.true.copy_(torch.tensor([v.true[1] for v in ensemble.variants])[:, None, None])
        picked = torch.randperm(len(images.x), generator=generator)[:32]
        moved = torch.randint(0, 4 * 32 + 5, (32,), generator=generator)
        x, y = ensemble.inputs(picked, moved)
        for place, one in enumerate(alone):
            one.step(x[place], y[place], warm=i < warm_steps)
        ensemble.step(picked, moved)
    return ensemble, alone


@pytest.mark.parametrize("layers", [3, 4])
def test_each_variant_in_the_stack_is_the_one_alone(monkeypatch, layers):
    monkeypatch.setattr(bench, "RATE", 1e-2)  # far from the first weights after a few steps
    ensemble, alone = trained(layers, 8, 4)
    # not the biases before a BatchNorm: their gradient is zero but for rounding, of which Adam makes whole steps
    for place, one in enumerate(alone):
        for i, layer in enumerate(one.net):
            own = [p[place].detach() for p in ensemble.net.parameters[4 * i : 4 * i + 4]]
            torch.testing.assert_close(own[0].t(), layer[0].weight, **CLOSE)
            if len(layer) > 1:
                torch.testing.assert_close(own[2], layer[1].weight, **CLOSE)
                torch.testing.assert_close(own[3], layer[1].bias, **CLOSE)
                torch.testing.assert_close(ensemble.net.variances[i][place], layer[1].running_var, **CLOSE)
    for heads in ensemble.heads:
        for at, place in enumerate(heads.own.tolist()):
            weight = torch.stack([head[-1][0].weight.t() for head in alone[place].heads])
            torch.testing.assert_close(heads.layers.parameters[-2][at :: len(heads.own)], weight, **CLOSE)
            assert weight.abs().max() > 1e-3  # they have learned


def test_in_eval_mode_the_stack_uses_its_running_statistics():
    images = data()
    ensemble = bench.Ensemble([bench.VARIANTS["backprop"], bench.VARIANTS["DNI"]], 4, 1, images)
    for i in range(3):
        ensemble.step(torch.arange(i, 32 + i), torch.zeros(32, dtype=torch.long))
    made = ensemble.net.evaluated(images.test_x)

    for place in (0, 1):
        h = images.test_x
        for i, layer in enumerate(block(ensemble.net.sizes, ensemble.net, place)):
            if len(layer) > 1:
                for name, mine in (("running_mean", ensemble.net.means), ("running_var", ensemble.net.variances)):
                    getattr(layer[1], name).copy_(mine[i][place])
                layer[1].weight.data, layer[1].bias.data = (
                    p[place] for p in ensemble.net.parameters[4 * i + 2 : 4 * i + 4]
                )
            h = layer.eval()(h)
        torch.testing.assert_close(made[place], h)


def test_the_frozen_and_the_silent_variant_stand_still_below_and_backprop_does_not(monkeypatch):
    monkeypatch.setattr(bench, "RATE", 1e-2)
    images = data()
    ensemble = bench.Ensemble(list(bench.VARIANTS.values()), 3, 1, images)
    ensemble.true.copy_(torch.tensor([v.true[1] for v in ensemble.variants])[:, None, None])
    before = ensemble.net.parameters[0].detach().clone()

    ensemble.step(torch.arange(32), torch.zeros(32, dtype=torch.long))

    moved = (ensemble.net.parameters[0] != before).flatten(1).any(1).tolist()
    true = {name for name, was in zip(bench.VARIANTS, moved, strict=True) if was}
    assert true == {"backprop", "backprop, shifted images", "backprop, noisy labels"}  # heads begin at zero


def test_measures_of_an_estimate_that_is_the_true_gradient_say_so(monkeypatch):
    images = data(256)
    ensemble = bench.Ensemble([bench.VARIANTS["cDNI"], bench.VARIANTS["backprop"]], 3, 0, images)
    truth = {}

    def perfect(h, label, track):
        kept, out = ensemble.forward(truth["x"], track=False)
        return ensemble._down(kept, (torch.softmax(out, -1) - label) / bench.BATCH)[:, ensemble.heads[0].own]

    monkeypatch.setattr(ensemble.heads[0], "estimate", perfect)
    truth["x"] = images.x.expand(2, -1, -1)
    (near, none) = ensemble._nearness(images.x, images.y, batches=1)

    assert none == {}
    assert near["cosine by cut"] == pytest.approx([1, 1])
    assert min(near["label read %, by cut"]) > 99  # units that are all off have no direction
    assert near["size by cut"] == pytest.approx([1, 1]) and near["weight cosine"] == pytest.approx(1)


def test_shifted_images_are_the_images_moved_by_up_to_two_pixels():
    images = data()
    ensemble = bench.Ensemble(list(bench.VARIANTS.values()), 3, 0, images)
    picked, moved = bench.Batches(96, 0, torch.device("cpu")).chunk(1)

    x, y = ensemble.inputs(picked[0], moved[0])
    plain, shifted = x[0].unflatten(1, (28, 28)), x[1].unflatten(1, (28, 28))

    assert torch.equal(x[0], images.x[picked[0]]) and torch.equal(y[0], images.y[0, picked[0]])
    assert not torch.equal(y[2], y[0])  # the noisy labels
    for one, other, place in zip(plain, shifted, moved[0].tolist(), strict=True):
        down, right = place // 32 - 2, place % 32 - 2
        expected = F.pad(one, [2] * 4)[down + 2 : down + 30, right + 2 : right + 30]
        assert torch.equal(other, expected) and abs(down) <= 2 and abs(right) <= 2


def test_a_short_run_writes_a_row_for_each_variant_and_its_curve(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CHUNK", 2)
    images = bench.with_noise(
        torch.rand(300, 28, 28), torch.randint(10, (300,)), torch.rand(300, 784), torch.arange(300) % 10
    )
    ensemble = bench.Ensemble(bench.chosen(6, (), everywhere=False), 3, 0, images)
    run = bench.Run(ensemble, 20, 0)

    bench.train([run], tmp_path / "rows.jsonl", 0, 100.0, 500_000)

    written = rows.read(tmp_path / "rows.jsonl")
    assert [row["arm"] for row in written] == [v.name for v in ensemble.variants]
    assert "DNI, noisy labels" not in {row["arm"] for row in written}  # not at 6 layers
    assert all([p["steps"] for p in row["curve"]] == [*range(2, 21, 2)] for row in written)
    lines = bench.table(written).splitlines()
    assert lines[0].endswith("| 3 layers |") and len(lines) == 2 + len(written)
