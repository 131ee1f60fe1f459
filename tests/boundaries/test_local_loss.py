"""A local loss in place of a predicted gradient."""

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import BATCH, CLASSES, WIDTH, boundary

from dnigraph.boundaries import (
    BoundaryError,
    CrossingSpec,
    local_loss,
    make_boundary,
)
from dnigraph.heads.conditions import ConditionError, Context, one_hot
from dnigraph.heads.seen import Seen


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
        visit = crossing.visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1, crossing.context.seen)

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
        boundary(local_loss(classes=3)).visit(torch.randn(BATCH, WIDTH, requires_grad=True) * 1, Seen())


@pytest.mark.parametrize("shape", [(BATCH, 4, 6, 6), (BATCH, 4, 6), (BATCH, 4, 2, 6, 6)])
@pytest.mark.parametrize("finer", [1, 2])
def test_a_map_of_labels_is_learned_at_each_position(shape, finer):
    spec = CrossingSpec("layer2", shape, torch.float32, torch.device("cpu"), line=True)
    crossing = make_boundary(local_loss(2), spec, Context())
    optimiser = torch.optim.Adam(crossing.parameters(), 0.05)
    value = torch.randn(shape)
    label = value[:, 0] > 0
    for axis in range(1, label.ndim):
        label = label.repeat_interleave(finer, axis)

    for _ in range(60):
        optimiser.zero_grad()
        with crossing.context.conditioned(label):
            crossing(value.clone().requires_grad_() * 1).sum().backward()
        optimiser.step()

    assert crossing.metrics()["local_loss"] < 0.45  # the mean of a sample says nothing: 0.69


@pytest.mark.parametrize(("label", "numbers"), [(torch.randn(BATCH), 1), (torch.randn(BATCH, 2), 2)])
def test_numbers_may_be_regressed_on(label, numbers):
    crossing = boundary(local_loss(numbers, loss=F.mse_loss))
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    with crossing.context.conditioned(label):
        crossing(value * 1).sum().backward()

    assert value.grad.ne(0).any()


@pytest.mark.parametrize(
    "label", [torch.full((BATCH,), 9), torch.zeros(BATCH, 2, dtype=torch.long), torch.zeros(BATCH, dtype=torch.cfloat)]
)
def test_a_label_that_the_loss_does_not_take_is_named_with_the_way_out(label):
    crossing = boundary(local_loss(CLASSES))

    with (
        crossing.context.conditioned(label),
        pytest.raises(BoundaryError, match=r"'layer2' fails on scores .*from 0 to 2.*ignore_index=255"),
    ):
        crossing(torch.randn(BATCH, WIDTH, requires_grad=True) * 1)


def test_an_answer_that_comes_again_teaches_nothing():
    value = torch.randn(BATCH, WIDTH)

    visit = boundary(local_loss(CLASSES)).again(value, Seen())

    assert visit.roots == (value,) and visit.now == (None,) and visit.settle(value) == (None,)


def test_it_says_that_it_needs_a_label_and_never_waits():
    crossing = boundary(local_loss(CLASSES))

    assert crossing.needs == {"label"} and crossing.waits is False


def test_a_map_of_labels_may_have_a_channel_of_its_own():
    crossing = boundary(local_loss(CLASSES), shape=(BATCH, 4, 6, 6))
    value, label = torch.randn(BATCH, 4, 6, 6, requires_grad=True), torch.randint(CLASSES, (BATCH, 6, 6))

    losses = []
    for form in (label, label.unsqueeze(1)):
        with crossing.context.conditioned(form):
            crossing.visit(value * 1, crossing.context.seen)
        losses.append(crossing.metrics())

    assert losses[0] == losses[1]


def test_its_label_is_checked_and_not_encoded():
    crossing, label = boundary(local_loss(CLASSES)), torch.zeros(BATCH, dtype=torch.long)

    assert crossing.condition(label) is label


@pytest.mark.parametrize("classes", [0, -1, True, 2.0, "3"])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(BoundaryError, match=f"classes must be a positive whole number, not {classes!r}"):
        boundary(local_loss(classes))


def test_one_class_and_hidden_units_of_ones_own_are_taken():
    crossing = boundary(local_loss(1, hidden=2))

    assert crossing.head_name == "classifier 2"
    assert [list(p.shape) for p in crossing.classifier.output.parameters()] == [[1, 2], [1]]
