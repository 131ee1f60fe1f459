"""Direct feedback alignment: the gradient by hand, on all shapes, with the same matrix wherever it is needed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kit.boundaries import boundary
from kit.models import CLASSES, cut_up, labels, loss_of
from torch import nn

import dnigraph as dg
from dnigraph.boundaries import BoundaryError
from dnigraph.heads.seen import Outputs, Seen

W = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def batch(i):
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(i))
    return x, (x @ W).argmax(1)


def seen_with(error):
    return Seen(outputs=Outputs([error]))


def test_the_gradient_below_a_cut_is_the_error_through_the_matrix():
    dm = dg.decouple(net(), ["1", "3"], (X := batch(0)[0],), boundary="dfa")
    x, y = batch(0)

    F.cross_entropy(dm(x), y).backward()

    plain, matrix = dm.recouple(), dm.boundaries["1"]._feedback(4, 32, X)
    h = torch.tanh(plain[0](x))
    scores = plain[4](torch.tanh(plain[2](h)))
    error = (scores.softmax(1) - F.one_hot(y, 4)) / 64
    expected = torch.autograd.grad(h, plain[0].weight, error.detach() @ matrix)[0]
    torch.testing.assert_close(plain[0].weight.grad, expected)
    assert plain[0].weight.grad.abs().max() > 0


def test_what_the_consumers_send_is_not_looked_at():
    crossing, value = boundary("dfa"), torch.randn(8, 6, requires_grad=True) * 1
    error = torch.randn(8, 3)
    visit = crossing.visit(value, seen_with(error))

    one, other = visit.settle(torch.ones(8, 6))[0], visit.settle(None)[0]

    assert visit.now is None and torch.equal(one, other) and one.abs().max() > 0


@pytest.mark.parametrize(
    ("value", "error", "matrix"),
    [
        ((8, 6), (8, 3), (3, 6)),
        ((8, 5, 6), (8, 5, 3), (3, 6)),  # tokens: one matrix for all positions
        ((8, 5, 6), (8, 3), (3, 30)),
        ((8, 6, 4, 4), (8, 3), (3, 96)),
        ((8, 6, 4, 4), (8, 3, 8, 8), (3, 6)),  # maps
        ((8,), (8, 3), (3, 1)),
    ],
)
def test_values_and_errors_of_all_shapes(value, error, matrix):
    crossing = boundary("dfa", shape=value)
    visit = crossing.visit(torch.randn(value, requires_grad=True) * 1, seen_with(torch.randn(error)))

    (gradient,) = visit.settle(None)

    assert gradient.shape == value and crossing._matrix.shape == matrix


def test_maps_hear_the_mean_error_of_their_cell():
    crossing, error = boundary("dfa", shape=(2, 6, 2, 2)), torch.randn(2, 3, 4, 4)
    (gradient,) = crossing.visit(torch.zeros(2, 6, 2, 2), seen_with(error)).settle(None)

    cell = error[1, :, :2, 2:].mean((1, 2))
    torch.testing.assert_close(gradient[1, :, 0, 1], cell @ crossing._matrix)


def test_without_an_error_there_is_no_gradient():
    assert boundary("dfa").visit(torch.zeros(8, 6), Seen(outputs=Outputs())).settle(torch.ones(8, 6)) == (None,)


def test_an_error_of_another_batch_is_told():
    with pytest.raises(BoundaryError, match=r"8 samples, the error at the model's outputs \[4, 3\].*batch first"):
        boundary("dfa").visit(torch.zeros(8, 6), seen_with(torch.zeros(4, 3))).settle(None)


def test_a_matrix_that_no_memory_holds_is_told():
    with pytest.raises(BoundaryError, match="feedback matrix would be 100000 x 10000"):
        boundary("dfa")._feedback(100_000, 10_000, torch.zeros(1))


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), "much", True])
def test_a_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(BoundaryError, match="dfa: these options do not fit: scale="):
        dg.dfa(scale)


def test_the_matrix_is_scaled():
    one, twice = boundary(dg.dfa(1)), boundary(dg.dfa(2))
    twice.set_extra_state(one.get_extra_state())

    like = torch.zeros(1)
    torch.testing.assert_close(2 * one._feedback(400, 300, like), twice._feedback(400, 300, like))
    assert abs(float(one._feedback(400, 300, like).std()) * 400**0.5 - 1) < 0.02


def test_a_checkpoint_holds_the_matrix_and_crossings_have_their_own():
    one, other = net(), net()
    torch.manual_seed(1)
    one = dg.decouple(one, ["1", "3"], (batch(0)[0],), boundary="dfa")
    torch.manual_seed(2)
    other = dg.decouple(other, ["1", "3"], (batch(0)[0],), boundary="dfa")
    matrix = lambda dm, name: dm.boundaries[name]._feedback(4, 32, batch(0)[0])  # noqa: E731
    assert not torch.equal(matrix(one, "1"), matrix(other, "1"))
    assert not torch.equal(matrix(one, "1"), matrix(one, "3"))

    other.load_state_dict(one.state_dict())

    assert torch.equal(matrix(one, "1"), matrix(other, "1"))
    assert torch.equal(matrix(one, "3"), matrix(copy.deepcopy(one), "3"))


def loss_after(boundary, steps=200):
    dm = dg.decouple(net(), ["1", "3"], (batch(0)[0],), boundary=boundary)
    run = dg.Local(dm, loss=F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, 0.3))
    return sum(float(run.step(batch(i)[0], target=batch(i)[1]).loss) for i in range(steps))


@pytest.mark.parametrize("rule", ["dfa", dg.auglocal(classes=4), dg.infopro(classes=4)], ids=["dfa", "aug", "infopro"])
def test_a_local_rule_learns_what_silence_does_not(rule):
    assert loss_after(rule) < 0.8 * loss_after("silent")


def test_on_hooks_it_is_the_same():
    graphs, hooks = (cut_up("two_towers", boundary="dfa", capture=how)[0] for how in ("auto", "hooks"))
    y, args = labels(4), cut_up("two_towers", boundary="dfa")[1]

    for dm in (graphs, hooks):
        torch.manual_seed(3)
        loss_of(dm(*args), y).backward()

    gradients = [[p.grad for p in dm.recouple().parameters()] for dm in (graphs, hooks)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compiled_by_dynamo_it_is_the_same():
    x, y = batch(0)
    dm = dg.decouple(net(), ["1", "3"], (x,), boundary="dfa")
    F.cross_entropy(dm(x), y).backward()
    torch._dynamo.reset()
    model, backend = net(), dg.Backend(["1", "3"], boundary="dfa")
    step = torch.compile(model, backend=backend)
    backend.prepare(step, x)
    for name, crossing in dm.boundaries.items():
        backend.boundaries[name].set_extra_state(crossing.get_extra_state())

    F.cross_entropy(step(x), y).backward()

    for one, other in zip(dm.recouple().parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_it_is_probed_checked_and_shown():
    dm, args = cut_up("chain", boundary="dfa")

    assert dg.check(dm, *args).right
    assert set(dg.probe(dm, *args, target=labels(4), loss=loss_of).crossings) == {"bn", "fc2"}
    assert [crossing.boundary for crossing in dm.plan.crossings] == ["dfa", "dfa"]
    assert CLASSES == 5
