"""Calls of torch functions: a replay does what the model does, or the call is refused."""

import threading

import pytest
import torch
import torch.nn.functional as F
from kit.replay import Doing, assert_refused, judge
from torch import nn

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def sets_items(model, x):
    y = torch.zeros(x.shape[0], 4)
    y[:, 1:] = model.inner(x)[:, 1:]
    y[x[:, 0] > 0] = 0
    return y


def replaces_data(model, x):
    y = model.inner(x)
    y.data = y.data * 2
    return y**2


def writes_through_a_view(model, x):
    y = model.inner(x).clone()
    y[:, 0].zero_()
    return y


def writes_into_its_input(model, x):
    x.add_(1)
    return model.inner(x)


def hooks_a_gradient(model, x):
    y = model.inner(x)
    y.register_hook(lambda gradient: gradient * 2)
    return model.outer(y)


def works_without_gradients_for_a_while(model, x):
    with torch.no_grad():
        scale = model.inner(x).relu().mean()
    return model.outer(x) * scale


def works_in_bfloat16_for_a_while(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model.inner(x) @ torch.eye(4)
    return model.outer(y.float())


def differentiates_inside(model, x):
    y = model.inner(x)
    (gradient,) = torch.autograd.grad((y**2).sum(), y, create_graph=True)
    return model.outer(gradient)


def sends_gradients_back_inside(model, x):
    y = model.inner(x)
    (y**2).sum().backward(retain_graph=True)
    return model.outer(y)


def draws_random_numbers(model, x):
    return F.dropout(model.inner(x)) + torch.rand(4) + torch.randn_like(x)


def works_on_pieces(model, x):
    pieces = list(model.inner(x).chunk(2, 1))
    pieces[0] = pieces[0] * 2
    pieces.append(pieces[1] + 1)
    return torch.cat(pieces, 1)


def picks_rows_by_data(model, x):
    return model.inner(x)[torch.where(x[:, 0] > 0)[0]]


def moves_statistics(model, x):
    return F.batch_norm(model.inner(x), torch.zeros(4), torch.ones(4), training=True)


@pytest.mark.parametrize(
    "function",
    [
        sets_items,
        replaces_data,
        writes_through_a_view,
        writes_into_its_input,
        hooks_a_gradient,
        works_without_gradients_for_a_while,
        works_in_bfloat16_for_a_while,
        differentiates_inside,
        sends_gradients_back_inside,
        draws_random_numbers,
        works_on_pieces,
        picks_rows_by_data,
        moves_statistics,
    ],
)
def test_a_recording_does_what_the_model_does(function):
    verdict = judge(Doing(function), X)

    assert (verdict.same, verdict.more) == ("right", "right"), verdict.why


def maps_over_rows(model, x):
    return torch.vmap(lambda row: row * 2)(model.inner(x))


def takes_a_functional_gradient(model, x):
    return torch.func.grad(lambda z: (z**2).sum())(model.inner(x))


def writes_through_numpy(model, x):
    y = torch.zeros(4)
    y.numpy()[0] = 3
    return model.inner(x) + y


def hooks_with_a_tensor_of_the_run(model, x):
    y, keep = model.inner(x), (x > 0).float()
    y.register_hook(lambda gradient: gradient * keep)
    return model.outer(y)


def goes_past_torch(model, x):
    return model.inner(x) + torch.from_dlpack(x.detach().mean(0))


def makes_a_parameter(model, x):
    return model.outer(nn.Parameter(model.inner(x).detach()))


def runs_in_another_thread(model, x):
    found = []
    thread = threading.Thread(target=lambda: found.append(model.inner(x)))
    thread.start()
    thread.join()
    return found[0]


def draws_from_a_generator_of_its_own(model, x):
    return model.inner(x) + torch.rand(4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "function, why",
    [
        (maps_over_rows, "torch.func transform"),
        (takes_a_functional_gradient, "torch.func transform"),
        (writes_through_numpy, "writes into a tensor through numpy"),
        (hooks_with_a_tensor_of_the_run, "a function that holds tensors or sizes of this call"),
        (goes_past_torch, "no function of the inputs"),
        (makes_a_parameter, "no function of the inputs"),
        (runs_in_another_thread, "made by a call that torch does not report"),
        (draws_from_a_generator_of_its_own, "torch.Generator of its own"),
    ],
)
def test_calls_that_no_graph_can_make_are_refused_with_the_reason(function, why):
    assert_refused(Doing(function), X, why=why)
