"""Boundaries: what passes, what comes back, and that both ways to run them give the same numbers."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnigraph.boundaries import (
    Boundary,
    BoundaryError,
    CrossingSpec,
    Visit,
    dni,
    local_loss,
    make_boundary,
    oracle,
    sum_in_order,
)
from dnigraph.heads import mlp
from dnigraph.heads.conditions import ConditionError, Context, one_hot
from dnigraph.heads.layers import GAIN

BATCH, WIDTH, CLASSES = 8, 6, 3


def boundary(choice="dni", head="auto", shape=(BATCH, WIDTH), condition=None, context=None) -> Boundary:
    spec = CrossingSpec("layer2", shape, torch.float32, torch.device("cpu"), condition)
    return make_boundary(choice, spec, context or Context(), head)


class Said(nn.Module):
    """A head that says the same for every sample, learns it, and counts how often it is asked."""

    def __init__(self, width=WIDTH, value=1.0):
        super().__init__()
        self.said = nn.Parameter(torch.full((width,), value))
        self.asked = 0
        self.heard: Tensor | None = None

    def forward(self, value: Tensor) -> Tensor:
        self.asked += self.training
        self.heard = value
        return self.said.expand_as(value)


def said(value=1.0):
    return lambda spec: Said(spec.shape[-1], value)


def step(crossing: Boundary, value: Tensor, gradient: Tensor | None = None) -> Tensor:
    """One drop-in step in which the consumer sends `gradient`; returns what the producer got."""
    value = value.detach().requires_grad_()
    passed = crossing(value * 1)
    passed.backward(torch.ones_like(value) if gradient is None else gradient)
    return torch.zeros_like(value) if value.grad is None else value.grad


# ---- passing on


@pytest.mark.parametrize("choice", ["dni", "oracle", local_loss(classes=CLASSES)])
@pytest.mark.parametrize("consumers", [1, 3])
def test_the_value_passes_unchanged(choice, consumers):
    context = Context()
    value = torch.randn(BATCH, WIDTH, requires_grad=True) * 1

    with context.conditioned(torch.zeros(BATCH, dtype=torch.long)):
        passed = boundary(choice, context=context)(value, consumers)

    passed = (passed,) if consumers == 1 else passed
    assert len(passed) == consumers
    assert all(p.equal(value) and p.data_ptr() == value.data_ptr() for p in passed)


def test_without_training_the_very_same_tensor_comes_out_and_no_head_runs():
    crossing = boundary(head=said())
    value = torch.randn(BATCH, WIDTH, requires_grad=True) * 1

    with torch.no_grad():
        assert crossing(value) is value
    assert crossing(value.detach()) is value.detach() or crossing(value.detach()).equal(value)
    whole = torch.arange(4)
    assert crossing(whole) is whole
    crossing.eval()
    assert crossing(value) is value
    assert all(alias is value for alias in crossing(value, 2))

    assert crossing.head.module.asked == 0
    assert crossing.visits == 0


def test_in_eval_mode_the_true_gradient_passes():
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    boundary(head=said()).eval()(value * 1).square().sum().backward()

    assert value.grad.equal(2 * value)


def test_a_consumer_may_write_in_place():
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    boundary("oracle")(value * 1).relu_().sum().backward()

    assert value.grad.equal((value > 0).float())


# ---- what comes back


def test_below_the_boundary_only_the_prediction_arrives():
    lower, upper = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
    crossing = boundary(head=said(-2.0))
    x = torch.randn(BATCH, 4)
    crossing.scale.mean_square.fill_(9.0)

    upper(crossing(lower(x))).sum().backward()

    # what the head says, in units of GAIN times the scale, over the batch; the truth is upper.weight in every row
    assert torch.allclose(lower.weight.grad, (-2.0 * GAIN * 3 / BATCH) * x.sum(0).expand(WIDTH, 4))
    assert torch.allclose(upper.weight.grad, lower(x).sum(0, keepdim=True))


def test_the_first_prediction_of_a_silent_head_is_zero_and_another_head_is_heard_at_once():
    value = torch.randn(BATCH, WIDTH)

    assert step(boundary(), value).eq(0).all()
    assert step(boundary(head=said(5.0)), value).eq(5.0 * GAIN / BATCH).all()


@pytest.mark.parametrize("consumers", [1, 2, 4])
def test_an_oracle_equals_backprop_bitwise(consumers):
    def grads(between):
        torch.manual_seed(0)
        lower = nn.Linear(4, WIDTH)
        uppers = [nn.Linear(WIDTH, 2) for _ in range(consumers)]
        value = between(lower(torch.randn(BATCH, 4)))
        value = (value,) if consumers == 1 else value
        sum(u(v).square().sum() for u, v in zip(uppers, value, strict=True)).backward()
        return [p.grad for m in (lower, *uppers) for p in m.parameters()]

    def plain(h):
        aliases = tuple(h.view_as(h) for _ in range(consumers))
        return aliases[0] if consumers == 1 else InOrder.apply(h, consumers)

    crossing = boundary("oracle")
    for ours, theirs in zip(grads(lambda h: crossing(h, consumers)), grads(plain), strict=True):
        assert ours.equal(theirs)


class InOrder(torch.autograd.Function):
    """Plain backprop, with the order of summation written out."""

    @staticmethod
    def forward(ctx, value, consumers):
        return tuple(value.clone() for _ in range(consumers))

    @staticmethod
    def backward(ctx, *gradients):
        total = gradients[-1]
        for gradient in gradients[-2::-1]:
            total = total + gradient
        return total, None


def test_a_consumer_that_sends_nothing_counts_as_nothing():
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    first, _unused, third = boundary("oracle")(value * 1, 3)
    (first * 2 + third * 3).sum().backward()

    assert value.grad.eq(5).all()


def test_the_sum_runs_from_the_last_consumer_to_the_first():
    big, small = torch.tensor([1e8]), torch.tensor([1.0])

    assert sum_in_order([small, None, big, -big]).equal(small)  # (-big + big) + small
    assert sum_in_order([big, -big, small]).equal(torch.tensor([0.0]))  # (small - big) + big loses small
    assert sum_in_order([None, None]) is None
    assert sum_in_order([]) is None


# ---- learning


def test_the_head_learns_the_mean_squared_error_to_the_normalised_target():
    crossing = boundary(head=said(0.5))
    gradient = torch.randn(BATCH, WIDTH)

    step(crossing, torch.randn(BATCH, WIDTH), gradient)

    target = gradient * BATCH
    target = target / target.square().mean().sqrt() / GAIN  # the first target sets the scale
    expected = torch.autograd.functional.jacobian(
        lambda w: F.mse_loss(w.expand(BATCH, WIDTH), target), torch.full((WIDTH,), 0.5)
    )
    assert torch.allclose(crossing.head.module.said.grad, expected, rtol=1e-5)


def test_the_regression_never_leaks_into_the_model():
    crossing = boundary(head=lambda spec: nn.Linear(WIDTH, WIDTH))
    crossing.scale.mean_square.fill_(1.0)
    heard = []
    crossing.head.module.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    value = torch.randn(BATCH, WIDTH)

    got = step(crossing, value)

    assert not heard[0].requires_grad
    assert got.equal(crossing.head.module(value).detach() * (GAIN / BATCH))


def test_one_step_asks_the_head_once():
    crossing = boundary(head=said())

    for _ in range(3):
        step(crossing, torch.randn(BATCH, WIDTH))

    assert crossing.head.module.asked == 3


def test_estimates_do_not_depend_on_how_large_the_batch_is():
    def first_estimate_after_learning(batch):
        torch.manual_seed(0)
        crossing = boundary(head=said(1.0), shape=(batch, WIDTH))
        sample = torch.arange(1.0, WIDTH + 1).expand(batch, WIDTH)
        step(crossing, sample, sample / batch)  # the gradient of a mean over the batch
        return step(crossing, sample, sample / batch) * batch, crossing.head.module.said.grad

    for small, large in zip(first_estimate_after_learning(4), first_estimate_after_learning(64), strict=True):
        assert torch.allclose(small[0], large[0], rtol=1e-5)


def test_a_zero_first_target_gives_no_nan_and_does_not_set_the_scale():
    crossing = boundary()
    value = torch.randn(BATCH, WIDTH)

    step(crossing, value, torch.zeros(BATCH, WIDTH))

    assert crossing.scale.mean_square == 0
    assert all(p.grad.isfinite().all() for p in crossing.parameters())
    step(crossing, value, torch.full((BATCH, WIDTH), 0.5))
    first = crossing.scale.mean_square.clone()
    assert torch.allclose(first, torch.tensor((0.5 * BATCH) ** 2))
    step(crossing, value, torch.zeros(BATCH, WIDTH))
    assert crossing.scale.mean_square == first


def test_the_scale_fades_by_its_decay():
    crossing = boundary(dni(decay=0.75))

    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), 1 / BATCH))
    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), 3 / BATCH))

    assert torch.allclose(crossing.scale.mean_square, torch.tensor(0.75 * 1 + 0.25 * 9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_target_that_is_not_finite_teaches_nothing(bad):
    crossing = boundary(dni(replay=2))
    value = torch.randn(BATCH, WIDTH)
    step(crossing, value)
    before = crossing.scale.mean_square.clone()
    crossing.zero_grad()
    target = torch.ones(BATCH, WIDTH)
    target[0, 0] = bad

    step(crossing, value, target)
    crossing.zero_grad()
    step(crossing, value)

    assert crossing.scale.mean_square.isfinite() and before.isfinite()
    assert all(p.grad.isfinite().all() for p in crossing.parameters())


class Nothing(torch.autograd.Function):
    """A consumer that sends no gradient back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


def test_consumers_that_all_send_nothing_teach_nothing():
    crossing = boundary(head=said())
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    first, second = crossing(value * 1, 2)
    (Nothing.apply(first) + Nothing.apply(second)).sum().backward()

    assert crossing.head.module.said.grad is None
    assert crossing.metrics() == {}


def test_without_a_target_nothing_is_learned():
    crossing = boundary(head=said())
    visit = crossing.visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)

    assert visit.settle(None) == (None, None)
    assert crossing.scale.mean_square == 0
    assert crossing.metrics() == {}


def test_the_metrics_are_those_of_the_last_target():
    crossing = boundary(head=said(0.5))
    assert crossing.metrics() == {}
    gradient = torch.randn(BATCH, WIDTH)

    step(crossing, torch.randn(BATCH, WIDTH), gradient)

    target = gradient * BATCH
    normal = target / target.square().mean().sqrt()
    estimate = torch.full_like(target, 0.5 * GAIN)
    measured = crossing.metrics()
    assert measured["cosine"] == pytest.approx(
        float(F.cosine_similarity(estimate.flatten(), normal.flatten(), 0)), abs=1e-5
    )
    assert measured["error"] == pytest.approx(
        float((estimate - normal).square().sum() / normal.square().sum()), rel=1e-5
    )
    assert measured["target_rms"] == pytest.approx(float(target.square().mean().sqrt()), rel=1e-5)


def test_a_silent_head_has_error_one_and_cosine_zero():
    crossing = boundary()

    step(crossing, torch.randn(BATCH, WIDTH))

    assert crossing.metrics()["error"] == pytest.approx(1)
    assert crossing.metrics()["cosine"] == pytest.approx(0, abs=1e-6)


# ---- options


def producer_gets_truth(crossing: Boundary, visits: int) -> list[bool]:
    truth = torch.randn(BATCH, WIDTH)
    return [step(crossing, torch.randn(BATCH, WIDTH), truth).equal(truth) for _ in range(visits)]


def test_warm_up_gives_the_truth_first():
    crossing = boundary(dni(warm_up=2), said())

    assert producer_gets_truth(crossing, 4) == [True, True, False, False]
    assert crossing.head.module.asked == 4


def test_refresh_gives_the_truth_every_so_many_visits():
    assert producer_gets_truth(boundary(dni(refresh=3), said()), 7) == [False, False, True] * 2 + [False]


def test_blend_one_is_backprop_and_a_half_is_half():
    truth = torch.randn(BATCH, WIDTH)
    loud = boundary(dni(blend=1.0), said(float("inf")))
    loud.scale.mean_square.fill_(1.0)
    assert step(loud, truth, truth).equal(truth)

    crossing = boundary(dni(blend=0.25), said(2.0))
    crossing.scale.mean_square.fill_(16.0)
    got = step(crossing, truth, truth)

    assert torch.allclose(got, 0.25 * truth + 0.75 * 2.0 * GAIN * 4 / BATCH)


@pytest.mark.parametrize("options", [{"warm_up": 1}, {"refresh": 1}, {"blend": 0.5}])
def test_who_gets_truth_must_wait_for_it(options):
    visit = boundary(dni(**options)).visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)

    assert visit.now is None


def test_the_producer_of_a_plain_dni_does_not_wait():
    visit = boundary().visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)

    assert visit.now[0].eq(0).all() and visit.now[1] is None


def test_replay_learns_from_the_last_batches_too():
    crossing = boundary(dni(replay=2, decay=0.0), said(0.0))
    expected = []
    for scale in (1.0, 2.0, 3.0, 4.0):
        crossing.zero_grad()
        sign = torch.ones(BATCH, WIDTH).copysign(torch.randn(BATCH, WIDTH))
        expected.append(-2 * sign.mean(0) / WIDTH / GAIN)  # of the mean square error at 0, to targets of size 1 / GAIN

        step(crossing, torch.randn(BATCH, WIDTH), sign * scale)

        assert torch.allclose(crossing.head.module.said.grad, sum(expected[-3:]), atol=1e-6)
    assert len(crossing.replay) == 2


def test_replay_remembers_values_as_they_were():
    crossing = boundary(dni(replay=1))
    value = torch.ones(BATCH, WIDTH, requires_grad=True) * 1
    visit = crossing.visit(value)

    visit.settle(torch.randn(BATCH, WIDTH))
    value.detach().zero_()

    assert crossing.replay.value_0.eq(1).all()


def test_replay_forgets_batches_of_another_shape():
    crossing = boundary(dni(replay=3), "tokens", (BATCH, 5, WIDTH))

    step(crossing, torch.randn(BATCH, 5, WIDTH))
    step(crossing, torch.randn(BATCH, 5, WIDTH))
    assert len(crossing.replay) == 2
    step(crossing, torch.randn(BATCH, 7, WIDTH))

    assert len(crossing.replay) == 1
    step(crossing, torch.randn(BATCH // 2, 7, WIDTH))
    assert len(crossing.replay) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"warm_up": -1}, "warm_up=-1"),
        ({"refresh": 2.5, "blend": 2}, "refresh=2.5 .* blend=2"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"replay": True}, "replay=True"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(BoundaryError, match=words):
        dni(**options)


# ---- local loss


def test_a_local_loss_trains_the_producer_with_exactly_its_own_gradient():
    context = Context()
    crossing = boundary("local-loss", condition=one_hot(CLASSES), context=context)
    label = torch.randint(CLASSES, (BATCH,))
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    with context.conditioned(label):
        passed = crossing(value * 1)
    (passed * 1e3).sum().backward()

    expected = torch.autograd.grad(F.cross_entropy(crossing.classifier(value * 1, per_position=False), label), value)[0]
    assert value.grad.equal(expected)
    assert crossing.metrics()["local_loss"] > 0
    assert all(p.grad is not None for p in crossing.parameters())


def test_a_local_loss_does_not_wait():
    context = Context()
    crossing = boundary(local_loss(classes=CLASSES), context=context)

    with context.conditioned(torch.zeros(BATCH, dtype=torch.long)):
        visit = crossing.visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)

    assert visit.now[0] is None and visit.now[1] == 1
    assert visit.settle(torch.ones(BATCH, WIDTH)) == (None, None)


@pytest.mark.parametrize(
    ("shape", "label_shape"),
    [
        ((BATCH, WIDTH), (BATCH,)),
        ((BATCH, 5, WIDTH), (BATCH,)),
        ((BATCH, 5, WIDTH), (BATCH, 5)),
        ((BATCH,), (BATCH,)),
        ((BATCH, 4, 6, 6), (BATCH,)),
        ((BATCH, 4, 3, 6, 6), (BATCH,)),
    ],
)
def test_a_local_loss_stands_on_every_shape(shape, label_shape):
    context = Context()
    crossing = boundary(local_loss(classes=CLASSES), shape=shape, context=context)
    optimiser = torch.optim.Adam(crossing.parameters(), 0.05)
    label = torch.randint(CLASSES, label_shape)
    value = torch.randn(shape, requires_grad=True)
    seen = []

    for _ in range(50):
        optimiser.zero_grad()
        with context.conditioned(label):
            crossing(value * 1).sum().backward()
        optimiser.step()
        seen.append(crossing.metrics()["local_loss"])

    assert seen[-1] < (0.5 if len(shape) > 1 else 0.95) * seen[0]  # one number tells little of three classes


def test_a_local_loss_without_classes_says_the_way_out():
    with pytest.raises(BoundaryError, match=r"'layer2'.*local_loss\(classes=10\).*condition=one_hot"):
        boundary("local-loss")


def test_a_local_loss_is_one_number():
    context = Context()
    crossing = boundary(local_loss(CLASSES, lambda s, t: F.cross_entropy(s, t, reduction="none")), context=context)

    with context.conditioned(torch.zeros(BATCH, dtype=torch.long)), pytest.raises(BoundaryError, match="one number"):
        crossing(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)


def test_a_local_loss_without_a_label_says_the_way_out():
    with pytest.raises(ConditionError, match=r"'layer2' looks at the label.*conditioned"):
        boundary(local_loss(classes=3)).visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)


# ---- both ways to run


class Stack(nn.Module):
    """Three layers with a boundary after the first and the second; the second's consumers are two."""

    def __init__(self, choice, context, condition=None):
        super().__init__()
        self.lower, self.middle = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.upper, self.side = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        self.first = boundary(choice, condition=condition, context=context)
        self.second = boundary(choice, condition=condition, context=context)

    def loss(self, h, h_side, label):
        return F.cross_entropy(self.upper(h) + self.side(h_side), label)


def drop_in(net: Stack, x: Tensor, label: Tensor) -> None:
    h = net.first(net.lower(x).relu())
    net.loss(*net.second(net.middle(h).relu(), 2), label).backward()


def part_by_part(net: Stack, x: Tensor, label: Tensor) -> None:
    """Each part forward and, where its boundary allows it, backward, before the next part runs."""
    h1 = net.lower(x).relu()
    first = net.first.visit(h1)
    learn(first, first.now)
    received1 = h1.detach().requires_grad_()
    h2 = net.middle(received1).relu()
    second = net.second.visit(h2)
    learn(second, second.now)
    received2 = [h2.detach().requires_grad_() for _ in range(2)]
    net.loss(*received2, label).backward()
    learn(second, second.settle(sum_in_order([r.grad for r in received2])))
    learn(first, first.settle(received1.grad))


def learn(visit: Visit, gradients: tuple[Tensor | None, ...] | None) -> None:
    pairs = [(r, g) for r, g in zip(visit.roots, gradients or (), strict=gradients is not None) if g is not None]
    if pairs:
        torch.autograd.backward(*zip(*pairs, strict=True))


def train(run, choice, steps=20, condition=None, accumulate=1, net=None, start=0):
    torch.manual_seed(0)
    context = Context()
    net = net or Stack(choice, context, condition)
    context = net.first.context
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    data = torch.Generator().manual_seed(1)
    for number in range(steps):
        x = torch.randn(BATCH, 4, generator=data)
        label = torch.randint(CLASSES, (BATCH,), generator=data)
        if number < start:
            continue
        with context.conditioned(label):
            run(net, x, label)
        if (number + 1) % accumulate == 0:
            optimiser.step()
            optimiser.zero_grad()
    return net


CHOICES = {
    "dni": dni(),
    "warm-up": dni(warm_up=5),
    "refresh": dni(refresh=3),
    "blend": dni(blend=0.5),
    "replay": dni(replay=3),
    "all": dni(warm_up=3, refresh=4, blend=0.1, replay=2),
    "oracle": oracle(),
    "local-loss": local_loss(classes=CLASSES),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("condition", [None, one_hot(CLASSES)], ids=["DNI", "cDNI"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_part_by_part_equals_drop_in_bitwise(choice, condition, accumulate):
    one = train(drop_in, choice, condition=condition, accumulate=accumulate).state_dict()
    other = train(part_by_part, choice, condition=condition, accumulate=accumulate).state_dict()

    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
    assert one["middle.weight"].ne(train(drop_in, choice, 0, condition).state_dict()["middle.weight"]).any()


# ---- saving


@pytest.mark.parametrize("choice", [dni(replay=2), dni(warm_up=4, refresh=3)])
def test_a_loaded_boundary_goes_on_as_if_never_saved(choice):
    context = Context()
    crossing = boundary(choice, condition=one_hot(CLASSES), context=context)
    torch.manual_seed(0)
    batches = [
        (torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))) for _ in "12345"
    ]

    def go_on(crossing, batches):
        got = []
        for value, gradient, label in batches:
            crossing.zero_grad()
            with crossing.context.conditioned(label):
                got.append(step(crossing, value, gradient))
        return [*got, *(p.grad.clone() for p in crossing.parameters())]

    go_on(crossing, batches[:3])
    file = io.BytesIO()
    torch.save(crossing.state_dict(), file)
    file.seek(0)
    loaded = boundary(choice, condition=one_hot(CLASSES))
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(crossing)

    expected = go_on(crossing, batches[3:])
    assert all(a.equal(b) for a, b in zip(expected, go_on(loaded, batches[3:]), strict=True))
    assert all(a.equal(b) for a, b in zip(expected, go_on(copied, batches[3:]), strict=True))
    assert copied.context is not crossing.context


def test_a_checkpoint_holds_tensors_only():
    crossing = boundary(dni(replay=1))
    step(crossing, torch.randn(BATCH, WIDTH))

    assert all(isinstance(value, Tensor) for value in crossing.state_dict().values())
    assert {"visits", "scale.mean_square", "replay.value_0", "replay.target_0"} <= crossing.state_dict().keys()


def test_the_scale_stays_float32_when_the_model_is_cast():
    crossing = boundary().bfloat16()

    assert crossing.scale.mean_square.dtype == torch.float32
    assert crossing.head.output.weight.dtype == torch.bfloat16
    step(crossing, torch.randn(BATCH, WIDTH, dtype=torch.bfloat16))
    assert boundary().double().head.output.weight.dtype == torch.float64


# ---- precision


def test_under_autocast_the_head_still_works_in_float32():
    crossing = boundary()
    lower, upper = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
    heard = []
    crossing.head.output.register_forward_hook(lambda module, args, out: heard.append((args[0].dtype, out.dtype)))

    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            h = lower(torch.randn(BATCH, 4))
            passed = crossing(h)
            assert passed.dtype == h.dtype == torch.bfloat16
            loss = upper(passed).float().square().mean()
        loss.backward()

    assert heard == [(torch.float32, torch.float32)] * 2
    assert all(p.grad.dtype == torch.float32 for p in crossing.parameters())
    assert crossing.scale.mean_square > 0


# ---- choosing


@pytest.mark.parametrize(
    ("choice", "kind", "head"),
    [("dni", "dni", "mlp 6"), ("oracle", "oracle", None), ("local-loss", "local-loss", "classifier 6")],
)
def test_a_boundary_says_what_it_is(choice, kind, head):
    crossing = boundary(choice, mlp(hidden=6), condition=one_hot(CLASSES))

    assert (crossing.kind, crossing.head_name) == (kind, head)
    assert crossing.head_parameters == sum(p.numel() for p in crossing.parameters())
    assert "layer2" in repr(crossing)


def test_an_unknown_boundary_is_named_with_its_neighbours():
    with pytest.raises(BoundaryError, match=r"no boundary 'oracel'; nearest: oracle.*dni, oracle, local-loss"):
        boundary("oracel")


@pytest.mark.parametrize("choice", [3, nn.Linear(1, 1)])
def test_a_boundary_that_is_neither_name_nor_factory_is_refused(choice):
    with pytest.raises(BoundaryError, match="a name or a factory"):
        boundary(choice)


def test_a_factory_must_make_a_boundary():
    with pytest.raises(BoundaryError, match="'layer2' must make a Boundary, but made Linear"):
        boundary(lambda spec, context, head: nn.Linear(1, 1))


def test_a_users_boundary_needs_only_visit():
    class Sign(Boundary):
        kind = "sign"

        def visit(self, value):
            return Visit((value,), None, lambda target: (target.sign(),))

    crossing = boundary(lambda spec, context, head: Sign(spec, context))

    assert step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), -3.0)).eq(-1).all()


# ---- unusual crossings


@pytest.mark.parametrize("shape", [(), (BATCH,), (1, WIDTH), (BATCH, 2, 3, 4, 5), (BATCH, 2, 2, 2, 2, 3)])
@pytest.mark.parametrize("condition", [None, one_hot(CLASSES)], ids=["DNI", "cDNI"])
def test_values_of_unusual_shapes_have_gradients_too(shape, condition):
    context = Context()
    crossing = boundary(dni(replay=2), shape=shape, condition=condition, context=context)
    label = torch.zeros(shape[:1] or (1,), dtype=torch.long)
    optimiser = torch.optim.Adam(crossing.parameters(), 1e-2)

    for _ in range(4):
        with context.conditioned(label):
            got = step(crossing, torch.randn(shape))
        optimiser.step()

    assert got.shape == torch.Size(shape) and got.isfinite().all() and got.ne(0).any()


def test_an_empty_batch_passes():
    value = torch.zeros(0, WIDTH, requires_grad=True)

    boundary()(value * 1).sum().backward()

    assert value.grad.shape == (0, WIDTH)


def test_complex_values_are_refused_with_the_way_out():
    spec = CrossingSpec("spectrum", (BATCH, WIDTH), torch.complex64, torch.device("cpu"))

    with pytest.raises(ValueError, match=r"'spectrum'.*real numbers.*oracle"):
        make_boundary("dni", spec, Context())
    value = torch.randn(BATCH, WIDTH, dtype=torch.complex64, requires_grad=True)
    make_boundary("oracle", spec, Context())(value * 1).abs().sum().backward()
    assert value.grad is not None


@pytest.mark.parametrize("shape", [(8, 5), (8, 6, 6), (8,)])
def test_a_value_of_another_width_is_refused_with_the_way_out(shape):
    for choice in ("dni", local_loss(classes=CLASSES)):
        crossing = boundary(choice)

        with (
            crossing.context.conditioned(torch.zeros(8, dtype=torch.long)),
            pytest.raises(
                BoundaryError, match=r"values like the example's, \[8, 6\] with 6 features, but this"
            ) as caught,
        ):
            crossing(torch.randn(shape, requires_grad=True) * 1)
        assert "head={'layer2': ...}" in str(caught.value)


def test_positions_and_rows_may_be_more_or_fewer():
    crossing = boundary(shape=(8, 3, 4, 4))

    assert crossing(torch.randn(5, 3, 7, 2, requires_grad=True) * 1).shape == (5, 3, 7, 2)
