"""What is told of errors, of targets' sizes and of second derivatives; transforms that know one gradient."""

import copy
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import BATCH, WIDTH, boundary, says, step
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap

import dnigraph as dg
from dnigraph.boundaries import BoundaryError
from dnigraph.boundaries.watch import AFTER, BEFORE, MEASUREMENTS, WORSE, HeadHistory, transformed


def told(crossing, gradients):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for gradient in gradients:
            step(crossing, torch.randn(BATCH, WIDTH), gradient)
    return [str(w.message) for w in caught if issubclass(w.category, dg.TrainingWarning)]


def noise(count, size=1.0):
    return [torch.randn(BATCH, WIDTH) * size for _ in range(count)]


def test_a_head_that_is_worse_than_nothing_is_told_once_within_a_hundred_steps():
    words = told(boundary(head=says(2.0)), noise(200))

    assert len(words) == 1
    assert "'layer2' is worse" in words[0] and "condition=" in words[0] and "dg.silent()" in words[0]
    assert told(boundary(head=says(2.0)), noise(72))


@pytest.mark.parametrize("said", [0.0, 0.05, -0.1])
def test_a_head_that_knows_little_is_told_nothing(said):
    assert told(boundary(head=says(said)), noise(200)) == []


def test_an_error_in_the_warm_up_does_no_harm_and_is_told_nothing():
    assert told(boundary(dg.dni(warm_up=300), head=says(2.0)), noise(200)) == []


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_a_jump_of_the_targets_is_told_once(factor):
    words = told(boundary(), [*noise(60), *noise(100, factor)])

    assert len(words) == 1 and "dm.loss_scale = scaler" in words[0]


@pytest.mark.parametrize("kind", ["noisy", "trend", "spikes", "shapes", "start"])
def test_sizes_that_do_not_jump_are_told_nothing(kind):
    random.seed(0)
    history, found = HeadHistory(), []
    for number in range(600):
        size = random.lognormvariate(0, {"noisy": 0.6}.get(kind, 0.2))
        if kind == "trend":
            size *= 0.97**number
        if kind == "spikes" and number % 50 < 2:
            size *= 8
        if kind == "start":
            size *= min(number, 60) + 0.01
        rows = 8 if kind != "shapes" or number % 100 < 50 else 16
        found.append(history.target(size * (4 if rows == 16 else 1), rows, rows * 6))

    assert not any(found)


def test_on_an_accelerator_sizes_and_errors_are_read_seldom():
    history = HeadHistory()
    found = [history.target(torch.tensor(1.0 if i < 40 else 4.0), 8, 48) for i in range(128)]
    errors = [history.error(torch.tensor(2.0)) for _ in range(16)]

    assert [i for i, one in enumerate(found) if one] == [63]
    assert [i for i, one in enumerate(errors) if one is not None] == [7, 15]


# ---- the loss's scale


class Scaler:
    """A GradScaler as the library sees it."""

    def __init__(self, scale):
        self.scale = scale

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.scale


@pytest.mark.parametrize("make", [float, torch.tensor, Scaler, lambda s: torch.amp.GradScaler("cpu", init_scale=s)])
@pytest.mark.parametrize("choice", ["dni", dg.dni(replay=2), dg.dni(blend=0.5), "oracle"])
def test_with_the_scale_known_all_gradients_are_those_without_times_the_scale(make, choice):
    torch.manual_seed(0)
    plain = boundary(choice, head=lambda spec: nn.Linear(WIDTH, WIDTH))
    scaled = copy.deepcopy(plain)
    for scale in (1024.0, 1024.0, 256.0):
        scaled.context.loss_scale = make(scale)
        value, gradient = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)
        for crossing in (plain, scaled):
            crossing.zero_grad()

        assert step(scaled, value, gradient * scale).equal(step(plain, value, gradient) * scale)
        for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(a.grad, b.grad * scale)
        assert scaled.metrics() == pytest.approx(plain.metrics())


def test_a_local_loss_is_scaled_as_the_loss_is():
    crossing = boundary(dg.local_loss(3))
    value, label = torch.randn(BATCH, WIDTH), torch.zeros(BATCH, dtype=torch.long)
    with crossing.context.conditioned(label):
        plain = step(crossing, value)
        crossing.context.loss_scale = 8.0
        assert step(crossing, value).equal(plain * 8)


def test_a_scale_that_is_none_is_refused_by_its_kind():
    dm = dg.decouple(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "0", (torch.randn(2, 4),), boundary="oracle")
    dm.loss_scale = torch.amp.GradScaler("cpu")
    assert isinstance(dm.loss_scale, torch.amp.GradScaler)
    dm.loss_scale = None
    for wrong in ("1024", -1, float("nan"), nn.Linear(1, 1)):
        with pytest.raises(dg.DniGraphError, match="GradScaler, a positive number"):
            dm.loss_scale = wrong


# ---- one update from several micro-batches


def two_visits(crossing, gradients, values):
    for gradient, value in zip(gradients, values, strict=True):
        step(crossing, value, gradient)
    return [p.grad.clone() for p in crossing.parameters()]


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("choice", ["dni", dg.dni(blend=0.5)])
def test_an_accumulated_gradient_is_the_mean_of_the_visits(count, choice):
    torch.manual_seed(0)
    crossing = boundary(choice, head=lambda spec: nn.Linear(WIDTH, WIDTH))
    step(crossing, torch.randn(BATCH, WIDTH))
    alone, values, gradients = [], noise(count), noise(count)
    one_by_one = copy.deepcopy(crossing)
    for value, gradient in zip(values, gradients, strict=True):
        one_by_one.zero_grad()
        alone.append(two_visits(one_by_one, [gradient], [value]))
    for _ in range(2):  # the second update begins anew
        together = copy.deepcopy(crossing)
        together.zero_grad()
        for got, expected in zip(two_visits(together, gradients, values), zip(*alone, strict=True), strict=True):
            assert torch.allclose(got, sum(expected) / count, atol=1e-6)


@pytest.mark.parametrize("update", ["grad is None", "grad is zero", "version"])
def test_an_update_begins_the_mean_anew(update):
    crossing = boundary(head=lambda spec: nn.Linear(WIDTH, WIDTH))
    for _ in range(3):
        step(crossing, torch.randn(BATCH, WIDTH))
        for parameter in crossing.parameters():
            parameter.grad = None if update == "grad is None" else torch.zeros_like(parameter)
            if update == "version":
                parameter.detach().add_(0)
    other = boundary(head=lambda spec: nn.Linear(WIDTH, WIDTH))
    other.load_state_dict(crossing.state_dict())
    value, gradient = torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)

    step(crossing, value, gradient)
    step(other, value, gradient)

    assert all(a.grad.equal(b.grad) for a, b in zip(crossing.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("before", [0, 1, 3])
def test_several_passes_in_one_backward_are_averaged_too(before):
    torch.manual_seed(0)
    crossing = boundary(head=lambda spec: nn.Linear(WIDTH, WIDTH))
    other = copy.deepcopy(crossing)
    earlier, values = noise(before), noise(3)
    for value in earlier:
        step(crossing, value)
    for value in (*earlier, *reversed(values)):
        step(other, value)

    sum(crossing(value.requires_grad_() * 1).sum() for value in values).backward()

    for got, expected in zip(crossing.parameters(), other.parameters(), strict=True):
        assert torch.allclose(got.grad, expected.grad, atol=1e-6)


# ---- metrics


def test_metrics_that_are_read_in_each_step_are_those_of_the_step():
    crossing = boundary(head=says(0.5))
    for number in range(1, 12):
        step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), float(number)))
        assert crossing.metrics()["target_rms"] == pytest.approx(number * BATCH)


def test_the_metrics_of_a_step_are_its_own_also_when_they_are_read_later():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    runs = [
        dg.Local(
            dg.decouple(copy.deepcopy(model), "1", (x,), condition=dg.one_hot(3), boundary="dni"),
            loss=F.cross_entropy, optimizer=lambda p: torch.optim.Adam(p, 1e-2), monitor=monitor,
        )
        for monitor in (1, 3)
    ]  # fmt: skip
    torch.manual_seed(0)
    runs[1].dm.load_state_dict(runs[0].dm.state_dict())

    every, third = ([run.step(x, target=y) for _ in range(12)] for run in runs)

    errors = [result.metrics["1"]["error"] for result in every]
    assert len(set(errors)) == 12
    assert [bool(result.metrics) for result in third] == [False, False, True] * 4
    assert [result.metrics["1"]["error"] for result in third if result.metrics] == errors[2::3]


# ---- derivatives of another kind


def stack(choice):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    return model, dg.decouple(model, "1", (x,), boundary=choice, condition=dg.one_hot(3)), x


def per_sample(module, x):
    weights = {name: p.detach() for name, p in module.named_parameters() if not name.startswith("dni")}
    one = lambda w, row: functional_call(module, w, (row[None],)).square().sum()  # noqa: E731  # it is used once
    return vmap(grad(one), in_dims=(None, 0))(weights, x)["0.weight"]


def dual(module, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(module(forward_ad.make_dual(x, torch.ones_like(x)))).tangent.detach()


TRANSFORMS = {
    "per sample": per_sample,
    "jvp": lambda module, x: jvp(module, (x,), (torch.ones_like(x),))[1].detach(),
    "vmap": lambda module, x: vmap(module)(x[:, None]).detach(),
    "hessian": lambda module, x: hessian(lambda v: module(v).square().sum())(x[:2]).detach(),
    "forward mode": dual,
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_an_oracle_passes_any_transform_and_others_say_the_way_out(transform):
    model, exact, x = stack("oracle")
    expected = transform(model, x)
    assert transform(exact, x).equal(expected)

    for choice in ("dni", dg.local_loss(3), dg.silent()):
        _, dm, _ = stack(choice)
        with pytest.raises(BoundaryError, match=r"'1' .*torch\.func.*dm\.eval\(\).*dm\.recouple\(\)"):
            transform(dm, x)
        assert transform(dm.eval(), x).equal(transform(dm.recouple(), x))


def test_a_second_differentiation_through_an_estimate_is_told_once():
    model, dm, x = stack(dg.dni(guard=False))
    del model

    def penalty(module):
        inner = x.clone().requires_grad_()
        with dm.conditioned(torch.zeros(5, dtype=torch.long)):
            return torch.autograd.grad(module(inner).sum(), inner, create_graph=True)[0].square().sum()

    with pytest.warns(dg.TrainingWarning, match="create_graph=True through boundary '1'"):
        penalty(dm)
    penalty(dm)
    assert penalty(stack("oracle")[1]).equal(penalty(dm.recouple()))


def test_what_is_compiled_is_under_no_transform(monkeypatch):
    def seen(row):
        found.append(transformed())
        return row

    found = []
    vmap(seen)(torch.zeros(2, 1))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    vmap(seen)(torch.zeros(2, 1))

    assert found == [True, False]


def jumps(sizes):
    """The numbers of the targets at which a jump is told."""
    history = HeadHistory()
    return [i for i, size in enumerate(sizes) if history.target(size, 8, 48)]


def test_a_jump_needs_a_quiet_time_before_it_and_a_shorter_one_behind_it():
    assert jumps([1.0] * BEFORE + [4.0] * AFTER) == [BEFORE + AFTER - 1]
    assert jumps([1.0] * BEFORE + [4.0] * (AFTER - 1)) == []
    assert jumps([1.0] * (BEFORE - 4) + [4.0] * 60) == []
    assert jumps([0.0] * AFTER + [1.0] * BEFORE + [4.0] * AFTER) == [BEFORE + 2 * AFTER - 1]  # a zero has no level


def test_targets_of_another_form_begin_anew():
    history = HeadHistory()
    for _ in range(BEFORE):
        history.target(1.0, 8, 48)

    found = [history.target(4.0, 16, 96) for _ in range(60)]

    assert not any(found)


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([2.0] * MEASUREMENTS, 2.0),
        ([2.0] * (MEASUREMENTS - 1), None),
        ([WORSE] * MEASUREMENTS, None),
        ([WORSE + 0.01] * MEASUREMENTS, WORSE + 0.01),
        ([2.0] * (MEASUREMENTS - 1) + [float("nan")], None),  # there was no target
        ([0.5] * 6 + [2.0] * 3, None),
        ([0.5] * 4 + [2.0] * 5, 2.0),
    ],
)
def test_the_median_of_the_last_errors_is_told_where_it_is_worse_than_nothing(errors, told):
    history = HeadHistory()

    assert [history.error(error) for error in errors][-1] == (told if told is None else pytest.approx(told))
