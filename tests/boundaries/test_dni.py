"""The decoupled neural interface: what its head learns, and when the producer gets the truth."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import (
    BATCH,
    CLASSES,
    WIDTH,
    Nothing,
    boundary,
    producer_gets_truth,
    says,
    step,
)
from torch import Tensor, nn

from dnigraph.boundaries import (
    BoundaryError,
    dni,
)
from dnigraph.boundaries.dni import MEASURED, NOTHING
from dnigraph.heads.conditions import Context, one_hot
from dnigraph.heads.layers import GAIN
from dnigraph.heads.seen import Seen


def test_below_the_boundary_only_the_prediction_arrives():
    lower, upper = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
    crossing = boundary(head=says(-2.0))
    x = torch.randn(BATCH, 4)
    crossing.scale.mean_square.fill_(9.0)

    upper(crossing(lower(x))).sum().backward()

    # what the head says, in units of GAIN times the scale, over the batch; the truth is upper.weight in every row
    assert torch.allclose(lower.weight.grad, (-2.0 * GAIN * 3 / BATCH) * x.sum(0).expand(WIDTH, 4))
    assert torch.allclose(upper.weight.grad, lower(x).sum(0, keepdim=True))


def test_the_first_prediction_of_a_silent_head_is_zero_and_another_head_is_heard_at_once():
    value = torch.randn(BATCH, WIDTH)

    assert step(boundary(), value).eq(0).all()
    assert step(boundary(head=says(5.0)), value).eq(5.0 * GAIN / BATCH).all()


def test_the_head_learns_the_mean_squared_error_to_the_normalised_target():
    crossing = boundary(head=says(0.5))
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
    crossing = boundary(head=says())

    for _ in range(3):
        step(crossing, torch.randn(BATCH, WIDTH))

    assert crossing.head.module.asked == 3


def test_consumers_that_all_send_nothing_teach_nothing():
    crossing = boundary(head=says())
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    first, second = crossing(value * 1, 2)
    (Nothing.apply(first) + Nothing.apply(second)).sum().backward()

    assert crossing.head.module.said.grad is None
    assert crossing.metrics() == {}


def test_without_a_target_nothing_is_learned():
    crossing = boundary(head=says())
    visit = crossing.visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1, crossing.context.seen)

    assert visit.settle(None) == (None, None)
    assert crossing.scale.mean_square == 0
    assert crossing.metrics() == {}


def test_the_metrics_are_those_of_the_last_target():
    crossing = boundary(head=says(0.5))
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


def test_warm_up_gives_the_truth_first():
    crossing = boundary(dni(warm_up=2), says())

    assert producer_gets_truth(crossing, 4) == [True, True, False, False]
    assert crossing.head.module.asked == 4


def test_refresh_gives_the_truth_every_so_many_visits():
    assert producer_gets_truth(boundary(dni(refresh=3), says()), 7) == [False, False, True] * 2 + [False]


def test_blend_one_is_backprop_and_a_half_is_half():
    truth = torch.randn(BATCH, WIDTH)
    loud = boundary(dni(blend=1.0, guard=False), says(float("inf")))
    loud.scale.mean_square.fill_(1.0)
    assert step(loud, truth, truth).equal(truth)

    crossing = boundary(dni(blend=0.25, guard=False), says(2.0))
    crossing.scale.mean_square.fill_(16.0)
    got = step(crossing, truth, truth)

    assert torch.allclose(got, 0.25 * truth + 0.75 * 2.0 * GAIN * 4 / BATCH)


@pytest.mark.parametrize("options", [{"warm_up": 1}, {"refresh": 1}, {"blend": 0.5}])
def test_who_gets_truth_must_wait_for_it(options):
    visit = boundary(dni(**options)).meet(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)

    assert visit.now is None


def test_the_producer_of_a_plain_dni_does_not_wait():
    visit = boundary().visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1, Seen())

    assert visit.now[0].eq(0).all() and visit.now[1] is None


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


@pytest.mark.parametrize("size", [0.0, float("inf"), float("nan")])
def test_a_target_of_no_size_has_no_metrics(size):
    crossing = boundary(head=says(0.5))

    step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), size))

    assert crossing.metrics() == {}


def test_masked_scores_are_looked_for_in_the_first_visit_and_in_every_eighth():
    crossing, scores = boundary(head=says()), torch.ones(BATCH, WIDTH)
    scores[0, 0], scores[0, 1] = 2 * NOTHING, NOTHING
    step(crossing, torch.ones(BATCH, WIDTH))

    seen = []
    for _ in range(2 * MEASURED):
        step(crossing, scores)
        seen.append(float(crossing.head.module.heard[0, 0]) == 0)

    assert seen == [False] * (MEASURED - 1) + [True] * (MEASURED + 1)
    assert crossing.head.module.heard[0, 1] == NOTHING


@pytest.mark.parametrize(("warm_up", "measured"), [(0, [1, 8, 16]), (7, [1, 8, 16]), (8, [1, 16])])
def test_without_a_look_at_its_metrics_every_eighth_visit_is_measured(warm_up, measured):
    crossing, seen = boundary(dni(warm_up=warm_up)), [None]

    for _ in range(2 * MEASURED):
        step(crossing, torch.randn(BATCH, WIDTH))
        seen.append(crossing._seen)

    assert [i for i in range(1, len(seen)) if seen[i] is not seen[i - 1]] == measured


@pytest.mark.parametrize(
    "options", [{"blend": 0}, {"blend": 1}, {"decay": 0}, {"decay": 0.999}, {"replay": 0}], ids=str
)
def test_options_at_the_end_of_their_range_fit(options):
    assert boundary(dni(**options)).all_settings().items() >= options.items()


@pytest.mark.parametrize(
    "options", [{"blend": -0.01}, {"blend": 1.01}, {"decay": -0.01}, {"decay": 1}, {"replay": True}, {"refresh": -1}],
    ids=str,
)  # fmt: skip
def test_options_just_outside_of_it_are_named(options):
    ((name, value),) = options.items()

    with pytest.raises(BoundaryError, match=f"{name}={value!r}"):
        dni(**options)
