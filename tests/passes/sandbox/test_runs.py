"""One run observed: everything that it shows is compared, and a difference has its word."""

import pytest
import torch
from torch import nn

from dnigraph.passes.capture.ladder import capture
from dnigraph.passes.graph.pytrees import flatten
from dnigraph.passes.sandbox.rng import seed_all
from dnigraph.passes.sandbox.runs import BackwardError, graph_call, largest, model_call, near, observe, send_all
from dnigraph.passes.sandbox.snapshot import untouched

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Its dials each change one thing that a run shows."""

    def __init__(self):
        super().__init__()
        self.fc, self.plain = nn.Linear(4, 4), torch.ones(4)
        self.register_buffer("seen", torch.zeros(()))
        self.dials = set()

    def forward(self, x):
        self.seen += 2 if "buffers" in self.dials else 1
        h = self.fc(x)
        if "gradients" in self.dials:
            h = h * 2 - h.detach()
        if "random numbers" in self.dials:
            torch.rand(1)
        if "plain" in self.dials:
            self.plain.add_(1)
        h = h + ("results" in self.dials)
        return (h,) if "structure of results" in self.dials else h


def observed(model, sends=send_all):
    spec = flatten(((X,), {}))[1]
    with untouched(model) as before:
        seed_all(1)
        return observe(model_call(model, spec), model, [X], sends, before)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("what", ["structure of results", "results", "gradients", "buffers", "random numbers"])
def test_whatever_differs_between_two_runs_has_its_word(what, exact):
    model = Model()
    plain = observed(model)
    assert plain.differences(observed(model), exact) == []

    model.dials.add(what)

    assert plain.differences(observed(model), exact) == [what]


def test_a_plain_tensor_that_was_written_to_counts_as_a_buffer():
    model = Model()
    model.dials.add("plain")

    assert observed(model).buffers["plain"].eq(2).all()
    assert model.plain.eq(1).all()


def test_without_a_backward_pass_there_are_no_gradients_and_those_of_the_model_stay():
    model = Model()
    model.fc.weight.grad = torch.ones(4, 4)

    assert observed(model, sends=None).gradients == {}
    assert model.fc.weight.grad.eq(1).all()


def test_a_graph_is_observed_as_its_model_is():
    model = Model()
    captured = capture(model, (X,), {}, "record")

    with untouched(model) as before:
        seed_all(1)
        run = observe(graph_call(captured, model), model, [X], send_all, before)

    assert observed(model).differences(run) == []


def test_results_that_cannot_send_a_gradient_back_are_an_error_of_its_own():
    def spoils(inputs):
        y = model.fc(inputs[0])
        z = y**2
        y.add_(1)
        return z

    model = Model()
    with pytest.raises(BackwardError):
        observe(spoils, model, [X], send_all)


@pytest.mark.parametrize("dtype, apart", [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_near_is_relative_to_the_largest_number_and_depends_on_the_type(dtype, apart):
    x = torch.tensor([1.0, 100.0, float("nan")], dtype=torch.float64)

    assert near(x.to(dtype), (x * (1 + apart / 100)).to(dtype))
    assert not near(x.to(dtype), (x * (1 + apart * 10)).to(dtype))
    assert not near(x.to(dtype), x.to(dtype).nan_to_num(0))


@pytest.mark.parametrize(
    ("one", "other"),
    [(X, 1), (1, X), (1, 2), (X, X[:, :1].expand(3, 4)[:2]), (X, X[:1]), (X, X.double()), (X.long(), X.long() + 1)],
    ids="tensor_and_number number_and_tensor numbers rows broadcast type integers".split(),
)
def test_what_is_no_tensor_of_the_same_shape_and_type_is_not_near(one, other):
    assert near(one, other) is False


def test_near_is_measured_by_the_scale_that_is_given():
    assert near(X, X + 1, scale=1e5) is True
    assert near(X, X + 1, scale=1.0) is False


def test_the_largest_number_is_absolute_and_no_nan():
    assert largest(torch.tensor([1.0, -3.0, float("nan")])) == 3.0
    assert largest(torch.empty(0)) == largest(None) == 0.0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_gradients_are_sent_back_from_nested_tensors_of_either_layout_row_by_row():
    def nested(layout):
        return lambda inputs: torch.nested.as_nested_tensor([inputs[0][:2], inputs[0][2:]], layout=layout)

    x = X.clone().requires_grad_()
    strided, jagged = (
        observe(nested(layout), nn.Module(), [x], send_all).gradients["input 0"]
        for layout in (torch.strided, torch.jagged)
    )

    drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(jagged, strided) and strided.ne(0).all()
    rows = torch.Generator().manual_seed(7)
    pieces = [torch.randn(n, 4, generator=rows, dtype=torch.float64).float() for n in (2, 1)]
    assert torch.equal(strided, torch.cat(pieces)) and drawn.shape == strided.shape


def test_as_much_of_a_gradient_is_sent_back_as_is_asked_for():
    def gradient(*shares):
        x = X.clone().requires_grad_()
        run = observe(lambda inputs: (inputs[0] * 1, inputs[0] * 1), nn.Module(), [x], shares.__getitem__)
        assert run.differentiable == [0, 1]
        return run.gradients["input 0"]

    assert torch.allclose(gradient(1.0, 0.0) * 0.5, gradient(0.5, 0.0))
    assert torch.allclose(gradient(1.0, 0.0) + gradient(0.0, 1.0), gradient(1.0, 1.0))
    assert gradient(0.0, 0.0) is None
