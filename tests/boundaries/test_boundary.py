"""What passes a boundary, what comes back, and that both ways to run it give the same numbers."""

import pytest
import torch
from kit.boundaries import BATCH, CHOICES, CLASSES, WIDTH, boundary, drop_in, part_by_part, says, step, train

from dnigraph.boundaries import (
    Boundary,
    BoundaryError,
    Visit,
    dni,
    local_loss,
)
from dnigraph.heads.conditions import Context, one_hot


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
    crossing = boundary(head=says())
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

    boundary(head=says()).eval()(value * 1).square().sum().backward()

    assert value.grad.equal(2 * value)


@pytest.mark.parametrize("condition", [None, one_hot(CLASSES)], ids=["DNI", "cDNI"])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES.keys())
def test_part_by_part_equals_drop_in_bitwise(choice, condition):
    one = train(drop_in, choice, condition=condition).state_dict()
    other = train(part_by_part, choice, condition=condition).state_dict()

    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
    assert one["middle.weight"].ne(train(drop_in, choice, 0, condition).state_dict()["middle.weight"]).any()


def test_a_users_boundary_needs_only_visit():
    class Sign(Boundary):
        kind = "sign"

        def visit(self, value, seen):
            return Visit((value,), None, lambda target: (target.sign(),))

    crossing = boundary(lambda spec, context, head: Sign(spec, context))

    assert step(crossing, torch.randn(BATCH, WIDTH), torch.full((BATCH, WIDTH), -3.0)).eq(-1).all()


@pytest.mark.parametrize("shape", [(), (BATCH,), (1, WIDTH), (BATCH, 2, 3, 4, 5), (BATCH, 2, 2, 2, 2, 3)])
@pytest.mark.parametrize("condition", [None, one_hot(CLASSES)], ids=["DNI", "cDNI"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_values_of_unusual_shapes_have_gradients_too(shape, condition, dtype):
    context = Context()
    crossing = boundary(dni(replay=2, guard=False), shape=shape, condition=condition, context=context, dtype=dtype)
    label = torch.zeros(shape[:1] or (1,), dtype=torch.long)
    optimiser = torch.optim.Adam(crossing.parameters(), 1e-2)

    for _ in range(4):
        with context.conditioned(label):
            got = step(crossing, torch.randn(shape, dtype=dtype))
        optimiser.step()

    assert got.dtype == dtype
    assert got.shape == torch.Size(shape) and got.isfinite().all() and got.ne(0).any()


class InParts(Boundary):
    """Hands down the true gradient, seen in real numbers."""

    kind, real = "parts", True

    def visit(self, value, seen):
        assert value.dtype == torch.float64 and value.shape == self.spec.shape
        return Visit((value,), None, lambda target: (target.clone(),))


@pytest.mark.parametrize("shape", [(), (BATCH,), (BATCH, WIDTH), (BATCH, 5, WIDTH), (BATCH, 3, 4, 5), (1, 2, 2, 2, 3)])
@pytest.mark.parametrize("consumers", [1, 2])
def test_a_complex_value_is_seen_in_its_parts_and_its_gradient_comes_back_complex(shape, consumers):
    crossing = boundary(lambda spec, context, head: InParts(spec, context), shape=shape, dtype=torch.complex128)
    value = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    weights = torch.randn(consumers, *shape, dtype=torch.complex128)

    conjugate = value.conj()  # its numbers are not those in its memory
    passed = crossing(conjugate, consumers)
    passed = [passed] if consumers == 1 else passed
    sum((w * p).real.sum() for w, p in zip(weights, passed, strict=True)).backward()
    (true,) = torch.autograd.grad(sum((w * value.conj()).real.sum() for w in weights), value)

    assert all(p.equal(conjugate) for p in passed)
    assert value.grad.allclose(true)


@pytest.mark.parametrize("share", [0.25, 1])
def test_a_share_of_the_true_gradient_of_a_complex_value_is_complex(share):
    crossing = boundary(dni(blend=share, guard=False), head=says(), dtype=torch.complex64)
    truth = torch.randn(BATCH, WIDTH, dtype=torch.complex64)
    value = torch.randn(BATCH, WIDTH, dtype=torch.complex64)

    step(crossing, value, truth)  # from here on the scale is that of the truth
    got = step(crossing, value, truth)

    said = (got - share * truth) / (1 - share) if share < 1 else torch.zeros(1)
    assert got.equal(truth) if share == 1 else (said.real.allclose(said.imag, rtol=1e-4) and said.real.gt(0).all())


def test_an_empty_batch_passes():
    value = torch.zeros(0, WIDTH, requires_grad=True)

    boundary()(value * 1).sum().backward()

    assert value.grad.shape == (0, WIDTH)


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


def test_a_boundary_without_weights_takes_infinite_values_and_one_with_them_does_not():
    assert boundary("oracle").takes_infinite() is True
    assert boundary(local_loss(CLASSES)).takes_infinite() is False


@pytest.mark.parametrize("consumers", [1, 2])
def test_alone_under_a_transform_only_an_exact_one_is_left_out(consumers):
    value = torch.randn(BATCH, WIDTH, requires_grad=True)

    def square(crossing):
        def loss(v):
            passed = crossing(v, consumers)
            return sum(p.square().sum() for p in (passed if consumers > 1 else [passed]))

        return torch.func.grad(loss)(value)

    assert square(boundary("oracle")).equal(2 * consumers * value)
    with pytest.raises(BoundaryError, match=r"'layer2' \(dni\) stands in train mode under a transform"):
        square(boundary("dni"))
    assert square(boundary("dni").eval()).equal(2 * consumers * value)
